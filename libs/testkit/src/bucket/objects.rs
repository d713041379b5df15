//! What is in a bucket, and what is said about it in XML.

use std::{collections::BTreeMap, fmt::Write as _, ops::Range};

use bytes::Bytes;

/// Objects by key.
pub(super) type Objects = BTreeMap<String, Bytes>;

/// Fewer than a provider lists at once, so that listings have portions here, too.
const PORTION: usize = 50;

/// The parameters of a query.
pub(super) fn query(text: &str) -> BTreeMap<String, String> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((decoded(name)?, decoded(value)?))
    };
    text.split('&').filter_map(pair).collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'%' => {
                let byte = hex::decode(rest.get(..2)?).ok()?;
                bytes.extend(byte);
                rest = rest.get(2..)?;
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok()
}

/// The portion of a listing that is asked for. `None`: it is asked for in another way.
pub(super) fn listing(query: &BTreeMap<String, String>, objects: &Objects) -> Option<String> {
    if query.get("list-type")? != "2" || query.contains_key("delimiter") {
        return None;
    }
    let prefix = query.get("prefix").map_or("", String::as_str);
    // The last key of the portion before.
    let after = query.get("continuation-token").map_or("", String::as_str);
    let mut found = objects
        .iter()
        .filter(|(key, _)| key.starts_with(prefix) && key.as_str() > after)
        .peekable();
    let mut xml = "<?xml version=\"1.0\"?><ListBucketResult>".to_owned();
    let mut last = None;
    for (key, object) in found.by_ref().take(PORTION) {
        last = Some(key);
        // Keys are plain here, and a string can always be written to.
        let _ = write!(
            xml,
            "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>{}</Size><ETag>\"1\"</ETag></Contents>",
            object.len()
        );
    }
    if let Some(last) = last.filter(|_| found.peek().is_some()) {
        let _ = write!(
            xml,
            "<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>"
        );
    }
    xml.push_str("</ListBucketResult>");
    Some(xml)
}

/// Deletes what a request names, and says so.
pub(super) fn delete(body: &[u8], objects: &mut Objects) -> String {
    let text = String::from_utf8_lossy(body);
    let keys = text.split("<Key>").skip(1);
    let deleted = keys.filter_map(|rest| {
        let (key, _) = rest.split_once("</Key>")?;
        // What is not there is deleted, too.
        objects.remove(key);
        Some(format!("<Deleted><Key>{key}</Key></Deleted>"))
    });
    let deleted: String = deleted.collect();
    format!("<?xml version=\"1.0\"?><DeleteResult>{deleted}</DeleteResult>")
}

/// What a `Range` header means for an object of so many bytes.
pub(super) fn range(header: &str, size: usize) -> Option<Range<usize>> {
    let (start, end) = header.strip_prefix("bytes=")?.split_once('-')?;
    let start: usize = start.parse().ok()?;
    let end = match end {
        "" => size,
        end => end.parse::<usize>().ok()?.checked_add(1)?.min(size),
    };
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_comes_in_portions_that_follow_each_other() {
        let objects: Objects = (0..PORTION + 1)
            .map(|number| (format!("a/{number:03}"), Bytes::new()))
            .chain([("b".to_owned(), Bytes::new())])
            .collect();
        let first = listing(&query("list-type=2&prefix=a%2F"), &objects).unwrap();
        assert_eq!(first.matches("<Key>").count(), PORTION);
        let token = "<NextContinuationToken>a/049</NextContinuationToken>";
        assert!(first.contains(token), "{first}");
        let next = "list-type=2&prefix=a%2F&continuation-token=a%2F049";
        let second = listing(&query(next), &objects).unwrap();
        assert_eq!(second.matches("<Key>").count(), 1);
        assert!(!second.contains("IsTruncated"));
    }

    #[test]
    fn ranges_end_with_the_object() {
        assert_eq!(range("bytes=1-2", 5), Some(1..3));
        assert_eq!(range("bytes=1-", 5), Some(1..5));
        assert_eq!(range("bytes=3-9", 5), Some(3..5));
        assert_eq!(range("bytes=5-9", 5), None);
        assert_eq!(range("items=1-2", 5), None);
    }
}
