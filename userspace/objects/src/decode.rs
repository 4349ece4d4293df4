//! Values into typed objects; unknown fields and wrong types are reported with their path.

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Segment, Track};

use crate::{Code, origin::push_key, report::Report};

/// Reads a value as `T`. Every unknown field is an error, and so is the first wrong type.
pub(crate) fn decode<T: DeserializeOwned>(value: &Value, report: &mut Report<'_>) -> Option<T> {
    let mut unknown = Vec::new();
    let mut track = Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let result = serde_ignored::deserialize(deserializer, |path| {
        unknown.push(ignored_path(&path));
    });
    for field in unknown {
        report.error(Code::UnknownField, field, "unknown field");
    }
    match result {
        Ok(decoded) => Some(decoded),
        Err(error) => {
            report.error(
                Code::InvalidValue,
                error_path(&track.path()),
                error.to_string(),
            );
            None
        }
    }
}

fn ignored_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", ignored_path(parent)),
        Path::Map { parent, key } => {
            let mut text = ignored_path(parent);
            push_key(&mut text, key);
            text
        }
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => ignored_path(parent),
    }
}

fn error_path(path: &serde_path_to_error::Path) -> String {
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => text.push_str(&format!("[{index}]")),
            Segment::Map { key } | Segment::Enum { variant: key } => push_key(&mut text, key),
            Segment::Unknown => {}
        }
    }
    text
}
