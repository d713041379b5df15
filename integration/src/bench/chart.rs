//! Lines over two axes as SVG. Pure.

use std::fmt::Write as _;

/// A picture of some lines.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    /// Above it.
    pub(super) title: String,
    /// What goes to the right, with its unit.
    pub(super) across: &'static str,
    /// What goes upwards, with its unit.
    pub(super) upwards: &'static str,
    /// Drawn one over the other.
    pub(super) lines: Vec<Line>,
}

/// One of its lines.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// In the legend.
    pub(super) name: &'static str,
    /// As in CSS.
    pub(super) color: &'static str,
    /// So that lines of one color can be told apart.
    pub(super) dashed: bool,
    /// To the right, upwards; not less than zero.
    pub(super) points: Vec<(f64, f64)>,
}

/// One of the two axes: from zero to beyond all points.
#[derive(Debug, Clone, Copy)]
struct Axis {
    step: f64,
    end: f64,
    /// In the picture.
    length: f64,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// An axis has about so many steps.
const STEPS: f64 = 6.0;

impl Axis {
    fn of(values: impl Iterator<Item = f64>, length: f64) -> Self {
        let most = values.fold(0.0, f64::max);
        // Without anything to show there are axes nevertheless.
        let most = if most > 0.0 { most } else { 1.0 };
        let rough = most / STEPS;
        let power = 10_f64.powf(rough.log10().floor());
        let factors = [1.0, 2.0, 5.0].into_iter();
        let step = factors
            .map(|factor| factor * power)
            .find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * power);
        Self {
            step,
            end: (most / step).ceil() * step,
            length,
        }
    }

    fn at(self, value: f64) -> f64 {
        self.length * value / self.end
    }

    /// The values of its marks, with what is written there.
    fn marks(self) -> impl Iterator<Item = (f64, String)> {
        // As many as the step has: labels that are next to each other differ.
        let decimals = (-self.step.log10().floor()).max(0.0) as usize;
        let count = (self.end / self.step).round() as u32;
        (0..=count).map(move |number| {
            let value = f64::from(number) * self.step;
            (value, format!("{value:.decimals$}"))
        })
    }
}

impl Chart {
    /// An SVG document.
    pub(super) fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| line.points.iter());
        let x = Axis::of(points().map(|point| point.0), WIDTH);
        let y = Axis::of(points().map(|point| point.1), HEIGHT);
        let (width, height) = (LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
        );
        text(&mut svg, (LEFT, 22.0), "font-size=\"14\"", &self.title);
        axes(&mut svg, x, y);
        let below = TOP + HEIGHT + 40.0;
        let middle = "text-anchor=\"middle\"";
        text(&mut svg, (LEFT + WIDTH / 2.0, below), middle, self.across);
        let (x_of_name, y_of_name) = (16.0, TOP + HEIGHT / 2.0);
        let turned = format!("{middle} transform=\"rotate(-90 {x_of_name} {y_of_name})\"");
        text(&mut svg, (x_of_name, y_of_name), &turned, self.upwards);
        for (number, line) in self.lines.iter().enumerate() {
            line.draw(&mut svg, x, y);
            let legend = TOP + 12.0 + 20.0 * number as f64;
            line.explain(&mut svg, legend);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

impl Line {
    fn draw(&self, svg: &mut String, x: Axis, y: Axis) {
        let place = |(right, up): &(f64, f64)| {
            format!("{:.1},{:.1}", LEFT + x.at(*right), TOP + HEIGHT - y.at(*up))
        };
        let points: Vec<_> = self.points.iter().map(place).collect();
        let (points, style) = (points.join(" "), self.style());
        // Writing to a string can't fail.
        let _ = writeln!(svg, "<polyline points=\"{points}\" {style}/>");
    }

    /// Its part of the legend.
    fn explain(&self, svg: &mut String, y: f64) {
        let (left, style) = (LEFT + WIDTH + 12.0, self.style());
        let right = left + 28.0;
        let _ = writeln!(
            svg,
            "<line x1=\"{left}\" y1=\"{y}\" x2=\"{right}\" y2=\"{y}\" {style}/>"
        );
        text(svg, (right + 6.0, y + 4.0), "", self.name);
    }

    fn style(&self) -> String {
        let color = self.color;
        let dashes = match self.dashed {
            true => " stroke-dasharray=\"6 4\"",
            false => "",
        };
        format!("fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"{dashes}")
    }
}

fn axes(svg: &mut String, x: Axis, y: Axis) {
    let (right, bottom) = (LEFT + WIDTH, TOP + HEIGHT);
    let mut stroke = |from: (f64, f64), to: (f64, f64), color| {
        let _ = writeln!(
            svg,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{color}\"/>",
            from.0, from.1, to.0, to.1
        );
    };
    for (value, _) in y.marks() {
        let at = bottom - y.at(value);
        stroke((LEFT, at), (right, at), "#dddddd");
    }
    stroke((LEFT, bottom), (right, bottom), "black");
    stroke((LEFT, TOP), (LEFT, bottom), "black");
    for (value, label) in y.marks() {
        let place = (LEFT - 8.0, bottom - y.at(value) + 4.0);
        text(svg, place, "text-anchor=\"end\"", &label);
    }
    for (value, label) in x.marks() {
        let place = (LEFT + x.at(value), bottom + 18.0);
        text(svg, place, "text-anchor=\"middle\"", &label);
    }
}

fn text(svg: &mut String, (x, y): (f64, f64), how: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {how}>{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> String {
        let line = Line {
            name: "p99 < all",
            color: "#dd6b20",
            dashed: true,
            points,
        };
        let chart = Chart {
            title: "layers & reads".to_owned(),
            across: "WAL (GB)",
            upwards: "layers",
            lines: vec![line],
        };
        chart.svg()
    }

    #[test]
    fn points_are_to_scale_and_axes_have_round_marks() {
        let svg = chart(vec![(0.0, 0.0), (5.0, 24.0)]);
        // Upwards marks are at 0, 5 ... 25, to the right at 0, 1 ... 5.
        let y = TOP + HEIGHT - HEIGHT * 24.0 / 25.0;
        let right = LEFT + WIDTH;
        let line = format!("points=\"60.0,340.0 {right:.1},{y:.1}\"");
        assert!(svg.contains(&line), "{svg}");
        for label in [">25<", ">20<", ">3<", "WAL (GB)", "p99 &lt; all"] {
            assert!(svg.contains(label), "{label}: {svg}");
        }
        assert!(!svg.contains(">30<"), "{svg}");
        assert!(svg.contains("layers &amp; reads") && svg.contains("stroke-dasharray"));
    }

    #[test]
    fn marks_can_be_told_apart_whatever_the_step() {
        let labels = |most| -> Vec<String> {
            let axis = Axis::of([most].into_iter(), WIDTH);
            axis.marks().map(|(_, label)| label).collect()
        };
        let expected = ["0.00", "0.02", "0.04", "0.06", "0.08", "0.10"];
        assert_eq!(labels(0.09), expected);
        assert_eq!(
            labels(1.1),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0", "1.2"]
        );
        assert_eq!(labels(5.5), ["0", "1", "2", "3", "4", "5", "6"]);
        assert_eq!(labels(110.0), ["0", "20", "40", "60", "80", "100", "120"]);
    }

    #[test]
    fn without_points_there_is_a_picture_nevertheless() {
        let svg = chart(Vec::new());
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
