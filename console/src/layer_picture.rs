//! The layers of a timeline as a picture. Pure.
//!
//! From left to right keys, upwards LSNs, each layer a rectangle. Keys are not spread evenly, a
//! database of a few tables would be three strokes: between any two neighbouring ends of layers lies
//! the same width. LSNs are to scale.

use std::{collections::BTreeSet, fmt::Write as _};

use palimpsest_api::compaction::LayerInfo;
use palimpsest_types::{ByteCount, Key, Lsn};

use crate::commands::layers::kind;

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 600.0;
const MARGIN: f64 = 70.0;
/// Nothing is thinner, or it could not be seen.
const THIN: f64 = 2.0;

/// An SVG document. Each rectangle says what it is when it is pointed at.
pub(crate) fn picture(layers: &[LayerInfo]) -> String {
    let keys = Keys::of(layers);
    let lsns = Lsns::of(layers);
    let (width, height) = (WIDTH + 2.0 * MARGIN, HEIGHT + 2.0 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    // Small ones last, or they would lie below the others.
    let mut order: Vec<_> = layers.iter().collect();
    order.sort_by_key(|layer| std::cmp::Reverse(layer.size));
    for layer in order {
        rectangle(&mut svg, layer, &keys, &lsns);
    }
    captions(&mut svg, layers, &lsns);
    svg.push_str("</svg>");
    svg
}

/// Where keys stand: in the order of those at which a layer begins or ends.
struct Keys(Vec<Key>);

struct Lsns {
    lowest: Lsn,
    highest: Lsn,
}

impl Keys {
    fn of(layers: &[LayerInfo]) -> Self {
        let ends = layers.iter().flat_map(|layer| [layer.first, layer.last]);
        Self(ends.collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn x(&self, key: Key) -> f64 {
        let at = self.0.partition_point(|end| *end < key);
        MARGIN + WIDTH * at as f64 / self.0.len().max(1) as f64
    }

    /// Where a key ends: a layer has its last one, too.
    fn x_behind(&self, key: Key) -> f64 {
        let at = self.0.partition_point(|end| *end <= key);
        MARGIN + WIDTH * at as f64 / self.0.len().max(1) as f64
    }
}

impl Lsns {
    fn of(layers: &[LayerInfo]) -> Self {
        Self {
            lowest: layers
                .iter()
                .map(|layer| layer.after)
                .min()
                .unwrap_or_default(),
            highest: layers
                .iter()
                .map(|layer| layer.up_to)
                .max()
                .unwrap_or_default(),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a picture is not so exact")]
    fn y(&self, lsn: Lsn) -> f64 {
        let all = self.highest.get().saturating_sub(self.lowest.get()).max(1);
        let part = lsn.get().saturating_sub(self.lowest.get());
        MARGIN + HEIGHT * (1.0 - part as f64 / all as f64)
    }
}

fn color(layer: &LayerInfo) -> &'static str {
    match (layer.image, layer.level) {
        (true, _) => "#2b6cb0",
        (false, 0) => "#dd6b20",
        (false, _) => "#38a169",
    }
}

fn rectangle(svg: &mut String, layer: &LayerInfo, keys: &Keys, lsns: &Lsns) {
    let (left, right) = (keys.x(layer.first), keys.x_behind(layer.last));
    let (top, bottom) = (lsns.y(layer.up_to), lsns.y(layer.after));
    let (width, height) = ((right - left).max(THIN), (bottom - top).max(THIN));
    let top = bottom - height;
    let LayerInfo {
        name,
        after,
        up_to,
        first,
        last,
        size,
        entries,
        ..
    } = layer;
    let (color, kind) = (color(layer), kind(layer));
    let title = format!(
        "{kind} {name}\n{size}, {entries} versions\nLSN after {after} up to {up_to}\n{first} … {last}"
    );
    // Writing to a string can't fail.
    let _ = writeln!(
        svg,
        "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{color}\" fill-opacity=\"0.45\" stroke=\"{color}\"><title>{}</title></rect>",
        escaped(&title)
    );
}

fn captions(svg: &mut String, layers: &[LayerInfo], lsns: &Lsns) {
    let total: u64 = layers.iter().map(|layer| layer.size.get()).sum();
    let (count, total) = (layers.len(), ByteCount::new(total));
    let bottom = MARGIN + HEIGHT + 20.0;
    let mut text = |x: f64, y: f64, color: &str, text: String| {
        let _ = writeln!(
            svg,
            "<text x=\"{x:.0}\" y=\"{y:.0}\" fill=\"{color}\">{}</text>",
            escaped(&text)
        );
    };
    text(MARGIN, 24.0, "black", format!("{count} layers, {total}"));
    text(MARGIN + 180.0, 24.0, "#2b6cb0", "base, image".to_owned());
    text(
        MARGIN + 270.0,
        24.0,
        "#dd6b20",
        "L0, as written from WAL".to_owned(),
    );
    text(MARGIN + 440.0, 24.0, "#38a169", "compacted".to_owned());
    text(MARGIN, bottom, "black", format!("LSN {}", lsns.lowest));
    text(
        MARGIN,
        MARGIN - 12.0,
        "black",
        format!("LSN {}", lsns.highest),
    );
    text(MARGIN + WIDTH - 60.0, bottom, "black", "keys →".to_owned());
}

/// Names come from files, so they may hold anything.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use palimpsest_types::WriterEpoch;

    use super::*;

    fn layer(name: &str, lsns: (u64, u64), keys: (u32, u32), level: u8) -> LayerInfo {
        LayerInfo {
            name: name.to_owned(),
            image: lsns.0 == lsns.1,
            after: Lsn::new(lsns.0),
            up_to: Lsn::new(lsns.1),
            first: Key::TwoPhase(keys.0),
            last: Key::TwoPhase(keys.1),
            size: ByteCount::mib(1),
            entries: 3,
            level,
            epoch: WriterEpoch::FIRST,
        }
    }

    #[test]
    fn layers_are_rectangles_of_keys_by_lsns() {
        let layers = [
            layer("base", (100, 100), (1, 9), 0),
            layer("fresh<&>", (150, 200), (1, 9), 0),
            layer("left", (100, 150), (1, 4), 1),
            layer("right", (100, 150), (5, 9), 1),
        ];
        let svg = picture(&layers);
        assert_eq!(svg.matches("<title>").count(), 4);
        assert!(svg.contains("fresh&lt;&amp;&gt;"), "{svg}");
        // Keys 1, 4, 5 and 9 are the ends: of four columns the left layer has two.
        let left = "x=\"70.0\" y=\"370.0\" width=\"500.0\" height=\"300.0\" fill=\"#38a169\"";
        assert!(svg.contains(left), "{svg}");
        let fresh = "x=\"70.0\" y=\"70.0\" width=\"1000.0\" height=\"300.0\" fill=\"#dd6b20\"";
        assert!(svg.contains(fresh), "{svg}");
    }

    #[test]
    fn without_layers_there_is_a_picture_nevertheless() {
        let svg = picture(&[]);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>"));
    }
}
