//! The reference of all settings, made from their structs.

use crate::{PortBase, Settings, inventory};

/// The settings of one struct as a Markdown section.
pub fn reference<S: Settings>() -> String {
    let title = S::SERVICE.map_or_else(|| "Every process".to_owned(), |name| format!("`[{name}]`"));
    let mut text =
        format!("## {title}\n\n| setting | default | variable | what it is |\n|---|---|---|---|\n");
    let settings = inventory(&S::defaults(PortBase::default()));
    for setting in settings.into_iter().flatten() {
        text.push_str(&format!(
            "| `{}` | `{}` | `{}` | {} |\n",
            setting.key, setting.default, setting.variable, setting.help
        ));
    }
    text
}
