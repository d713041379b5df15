//! AWS Signature Version 4, as a server checks it.

use std::collections::BTreeMap;

use hyper::HeaderMap;
use ring::{digest, hmac};

/// What is signed of a request.
pub(super) struct Signed<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
}

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "s3";
const END: &str = "aws4_request";

/// Whether the request is signed by this secret, and its body is the one that was signed.
pub(super) fn is_signed(request: &Signed<'_>, key_id: &str, secret: &str, region: &str) -> bool {
    check(request, key_id, secret, region).is_some()
}

fn check(request: &Signed<'_>, key_id: &str, secret: &str, region: &str) -> Option<()> {
    let fields = text(request.headers, "authorization")?.strip_prefix(ALGORITHM)?;
    let fields: BTreeMap<_, _> = fields
        .split(',')
        .filter_map(|field| field.trim().split_once('='))
        .collect();
    let time = text(request.headers, "x-amz-date")?;
    let day = time.get(..8)?;
    let scope = format!("{day}/{region}/{SERVICE}/{END}");
    if *fields.get("Credential")? != format!("{key_id}/{scope}") {
        return None;
    }
    let payload = text(request.headers, "x-amz-content-sha256")?;
    if payload != digest_of(request.body) {
        return None;
    }
    let canonical = canonical(request, fields.get("SignedHeaders")?, payload)?;
    let to_sign = format!(
        "{ALGORITHM}\n{time}\n{scope}\n{}",
        digest_of(canonical.as_bytes())
    );
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [day, region, SERVICE, END] {
        key = hmac::sign(&sha256(&key), part.as_bytes()).as_ref().to_vec();
    }
    let signature = hex::decode(fields.get("Signature")?).ok()?;
    hmac::verify(&sha256(&key), to_sign.as_bytes(), &signature).ok()
}

/// The request in the one form in which it is signed.
fn canonical(request: &Signed<'_>, signed: &str, payload: &str) -> Option<String> {
    // What makes the request what it is has to be signed.
    if !signed.split(';').any(|name| name == "host") {
        return None;
    }
    let mut pairs: Vec<_> = request
        .query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect();
    pairs.sort_unstable();
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let headers: Option<String> = signed
        .split(';')
        .map(|name| Some(format!("{name}:{}\n", text(request.headers, name)?.trim())))
        .collect();
    Some(format!(
        "{}\n{}\n{}\n{}\n{signed}\n{payload}",
        request.method,
        request.path,
        pairs.join("&"),
        headers?
    ))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn sha256(key: &[u8]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, key)
}

fn digest_of(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

    /// The example of a GET with a range in the provider's description of signatures.
    fn example() -> HeaderMap {
        let empty = digest_of(b"");
        let signature = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
        let authorization = format!(
            "{ALGORITHM} Credential={KEY_ID}/20130524/us-east-1/s3/aws4_request,SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,Signature={signature}"
        );
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "examplebucket.s3.amazonaws.com"),
            ("range", "bytes=0-9"),
            ("x-amz-content-sha256", &empty),
            ("x-amz-date", "20130524T000000Z"),
            ("authorization", &authorization),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        headers
    }

    fn accepted(path: &str, body: &[u8], secret: &str) -> bool {
        let request = Signed {
            method: "GET",
            path,
            query: "",
            headers: &example(),
            body,
        };
        is_signed(&request, KEY_ID, secret, "us-east-1")
    }

    #[test]
    fn the_providers_own_example_is_accepted() {
        assert!(accepted("/test.txt", b"", SECRET));
    }

    #[test]
    fn another_secret_path_or_body_is_not() {
        assert!(!accepted("/test.txt", b"", "guessed"));
        assert!(!accepted("/other.txt", b"", SECRET));
        assert!(!accepted("/test.txt", b"x", SECRET));
    }
}
