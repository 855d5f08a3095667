//! The page: a template that knows how to draw, and the data in the middle of it.

use super::Timeline;

const TEMPLATE: &str = include_str!("page.html");

/// Where the data goes.
const PLACE: &str = "/*TIMELINE*/null";

impl Timeline {
    /// One HTML file: style, script and data are in it, and it asks nobody for anything.
    #[must_use]
    pub fn page(&self) -> String {
        let data = serde_json::to_string(self).unwrap_or_else(|_| "null".to_owned());
        // Nothing in the data may end the element that it stands in.
        let data = data.replace('<', "\\u003c");
        TEMPLATE.replacen(PLACE, &data, 1)
    }
}
