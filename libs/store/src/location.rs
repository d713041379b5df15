//! Where an object store is, as a setting says it.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use object_store::path::Path as RawPath;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Where an object store is: a directory, or a bucket of a provider. It never holds credentials, so
/// it may be printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreLocation {
    /// A directory of this machine.
    Directory(PathBuf),
    /// A bucket, or what is below a prefix in it.
    Bucket(Bucket),
}

/// A bucket of a provider, and what comes before every name in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    provider: Provider,
    name: String,
    prefix: RawPath,
}

/// Whose protocol a bucket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// Amazon S3, and all that speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage, which calls a bucket a container.
    Azure,
}

/// A text is not the place of an object store. The text itself is not repeated: it may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseStoreLocationError {
    /// Nothing is given.
    #[error("the place of the object store is empty; {FORMS}")]
    Empty,
    /// The scheme is none that is known.
    #[error("there is no object store of the scheme {0:?}; {FORMS}")]
    UnknownScheme(String),
    /// A scheme without the slashes, which would be a strange directory.
    #[error("after {0}: come two slashes; {FORMS}")]
    NoSlashes(String),
    /// Who may use the store is said in the URL.
    #[error(
        "the URL of the object store holds credentials or options, which would be shown with it; leave out `@` and what is before it and `?` or `#` and what follows, and set {0}"
    )]
    Credentials(&'static str),
    /// A host and a port instead of a bucket.
    #[error(
        "a URL of an object store begins with a bucket, not with a host; {0} says where the host is"
    )]
    Host(&'static str),
    /// No bucket.
    #[error("the URL of the object store names no bucket; {FORMS}")]
    NoBucket,
    /// A bucket that nobody has.
    #[error("{0:?} is no name of a bucket: those have letters, digits, `-`, `_` and `.` only")]
    BucketName(String),
    /// A prefix that is no name of objects.
    #[error(
        "the prefix in the URL of the object store has an empty, `.` or `..` part, or is not plain text; correct it"
    )]
    Prefix,
    /// A file URL that is not a local path.
    #[error(
        "a file URL is file:// and an absolute path in which nothing is escaped; give the path itself"
    )]
    FileUrl,
}

const FORMS: &str =
    "give a directory, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX";
const FILE: &str = "file";

impl Provider {
    const ALL: [Self; 3] = [Self::S3, Self::Google, Self::Azure];

    /// The scheme of its URLs.
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Google => "gs",
            Self::Azure => "az",
        }
    }

    /// How the names of variables begin that say how to reach it and who asks.
    pub const fn variables(self) -> &'static str {
        match self {
            Self::S3 => "AWS_",
            Self::Google => "GOOGLE_",
            Self::Azure => "AZURE_",
        }
    }

    const fn credentials(self) -> &'static str {
        match self {
            Self::S3 => {
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION in the environment"
            }
            Self::Google => "GOOGLE_APPLICATION_CREDENTIALS in the environment",
            Self::Azure => {
                "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY in the environment"
            }
        }
    }

    const fn endpoint(self) -> &'static str {
        match self {
            Self::S3 => "AWS_ENDPOINT_URL in the environment",
            Self::Google => "GOOGLE_BASE_URL in the environment",
            Self::Azure => "AZURE_STORAGE_ENDPOINT in the environment",
        }
    }
}

impl StoreLocation {
    /// The directory, if it is one.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(path) => Some(path),
            Self::Bucket(_) => None,
        }
    }
}

impl Bucket {
    /// Whose it is.
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What comes before every name of an object.
    pub(crate) fn prefix(&self) -> &RawPath {
        &self.prefix
    }

    /// From what follows the scheme.
    fn parse(provider: Provider, rest: &str) -> Result<Self, ParseStoreLocationError> {
        if rest.contains(['@', '?', '#']) {
            return Err(ParseStoreLocationError::Credentials(provider.credentials()));
        }
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if name.is_empty() {
            return Err(ParseStoreLocationError::NoBucket);
        }
        if name.contains(':') {
            return Err(ParseStoreLocationError::Host(provider.endpoint()));
        }
        let of_names = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        if !name.chars().all(of_names) {
            return Err(ParseStoreLocationError::BucketName(name.to_owned()));
        }
        // The parser of names overlooks a slash too many at the beginning.
        if prefix.starts_with('/') {
            return Err(ParseStoreLocationError::Prefix);
        }
        let prefix = RawPath::parse(prefix).map_err(|_| ParseStoreLocationError::Prefix)?;
        Ok(Self {
            provider,
            name: name.to_owned(),
            prefix,
        })
    }
}

impl FromStr for StoreLocation {
    type Err = ParseStoreLocationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(ParseStoreLocationError::Empty);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return match scheme_without_slashes(text) {
                Some(scheme) => Err(ParseStoreLocationError::NoSlashes(scheme.to_owned())),
                None => Ok(Self::Directory(text.into())),
            };
        };
        // A path may hold `://`, too; what is before it in a URL is one word.
        if !is_scheme(scheme) {
            return Ok(Self::Directory(text.into()));
        }
        if scheme.eq_ignore_ascii_case(FILE) {
            return match rest.starts_with('/') && !rest.contains(['%', '?', '#']) {
                true => Ok(Self::Directory(rest.into())),
                false => Err(ParseStoreLocationError::FileUrl),
            };
        }
        let provider = provider_of(scheme);
        let provider =
            provider.ok_or_else(|| ParseStoreLocationError::UnknownScheme(scheme.to_owned()))?;
        Bucket::parse(provider, rest).map(Self::Bucket)
    }
}

fn provider_of(scheme: &str) -> Option<Provider> {
    let matches = |provider: &Provider| provider.scheme().eq_ignore_ascii_case(scheme);
    Provider::ALL.into_iter().find(matches)
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter))
}

/// `s3:/bucket` and the like.
fn scheme_without_slashes(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once(':')?;
    let known = provider_of(scheme).is_some() || scheme.eq_ignore_ascii_case(FILE);
    known.then_some(scheme)
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.provider.scheme(), self.name)?;
        match self.prefix.as_ref() {
            "" => Ok(()),
            prefix => write!(f, "/{prefix}"),
        }
    }
}

impl From<PathBuf> for StoreLocation {
    fn from(directory: PathBuf) -> Self {
        Self::Directory(directory)
    }
}

impl From<&PathBuf> for StoreLocation {
    fn from(directory: &PathBuf) -> Self {
        Self::Directory(directory.clone())
    }
}

impl From<&Path> for StoreLocation {
    fn from(directory: &Path) -> Self {
        Self::Directory(directory.to_owned())
    }
}

impl From<&Self> for StoreLocation {
    fn from(location: &Self) -> Self {
        location.clone()
    }
}

impl Serialize for StoreLocation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            // Fails for a path that is no text, as it does for all settings that are paths.
            Self::Directory(path) => path.serialize(serializer),
            Self::Bucket(bucket) => serializer.collect_str(bucket),
        }
    }
}

impl<'de> Deserialize<'de> for StoreLocation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<StoreLocation, ParseStoreLocationError> {
        text.parse()
    }

    #[test]
    fn what_is_no_url_is_a_directory() {
        for path in [
            "data/store",
            "/data/store",
            "./s3",
            "a:b",
            "dir/x://y",
            "s3",
        ] {
            assert_eq!(parsed(path).unwrap(), StoreLocation::from(Path::new(path)));
        }
        let same = parsed("file:///data/store").unwrap();
        assert_eq!(same.directory(), Some(Path::new("/data/store")));
    }

    #[test]
    fn a_bucket_is_printed_as_it_is_written_down() {
        for (text, printed) in [
            ("s3://bucket", "s3://bucket"),
            ("S3://bucket/", "s3://bucket"),
            ("gs://bucket/one/two", "gs://bucket/one/two"),
            ("az://container/one/", "az://container/one"),
        ] {
            let location = parsed(text).unwrap();
            assert_eq!(location.to_string(), printed);
            assert_eq!(parsed(printed).unwrap(), location);
            assert_eq!(location.directory(), None);
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_to_do() {
        use ParseStoreLocationError as Error;
        assert_eq!(parsed(""), Err(Error::Empty));
        assert_eq!(parsed("s3://"), Err(Error::NoBucket));
        assert_eq!(parsed("s3:///prefix"), Err(Error::NoBucket));
        assert_eq!(parsed("ftp://x/y"), Err(Error::UnknownScheme("ftp".into())));
        assert_eq!(parsed("s3:/bucket"), Err(Error::NoSlashes("s3".into())));
        assert_eq!(parsed("s3://b//x"), Err(Error::Prefix));
        assert_eq!(parsed("s3://b/../x"), Err(Error::Prefix));
        assert_eq!(parsed("s3://b u"), Err(Error::BucketName("b u".into())));
        assert_eq!(parsed("file://host/x"), Err(Error::FileUrl));
        assert_eq!(parsed("file:///a%20b"), Err(Error::FileUrl));
        assert!(matches!(
            parsed("s3://localhost:9000/b"),
            Err(Error::Host(_))
        ));
    }

    #[test]
    fn a_secret_in_a_url_is_refused_and_not_repeated() {
        for text in [
            "s3://key:hush@bucket/prefix",
            "s3://bucket/prefix?secret=hush",
            "gs://bucket/prefix#hush",
            "az://bucket/hush@prefix",
        ] {
            let error = parsed(text).unwrap_err();
            assert!(matches!(error, ParseStoreLocationError::Credentials(_)));
            assert!(!format!("{error} {error:?}").contains("hush"), "{error}");
        }
    }
}
