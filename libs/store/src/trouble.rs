//! Why a bucket did not do what was asked, found out from what the provider's client says.

use std::{error::Error, fmt};

use object_store::client::{HttpError, HttpErrorKind};
use palimpsest_types::ErrorKind;

/// Why a bucket did not do what was asked: what is wrong, and what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nobody says who we are.
    NoCredentials,
    /// Who we are is not believed, or may not do it.
    NoAccess,
    /// There is no such bucket.
    NoBucket,
    /// The bucket is elsewhere.
    OtherRegion,
    /// It can't create an object only if there is none.
    NoConditionalCreate,
    /// Too much is asked of it.
    Throttled,
    /// No connection to it.
    Unreachable,
    /// A connection without TLS was asked for, and not allowed.
    PlainHttp,
    /// It does not answer.
    Silent,
    /// Something else.
    Other,
}

/// What the provider, its client or the system said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Said(String);

/// Addresses of this kind are those where a machine in a cloud asks who it is.
const METADATA: [&str; 2] = ["://169.254.", "://metadata.google.internal"];
/// What the client writes before the status of an answer.
const STATUS: &str = "status code: ";
/// More of what was said helps nobody.
const SAID_LIMIT: usize = 300;

impl Trouble {
    /// What the caller may do.
    pub(crate) fn kind(self) -> ErrorKind {
        match self {
            Self::NoConditionalCreate | Self::PlainHttp => ErrorKind::Invalid,
            // Not the caller's fault, and not over soon: somebody has to act.
            Self::NoCredentials | Self::NoAccess | Self::NoBucket | Self::OtherRegion => {
                ErrorKind::Internal
            }
            // Throttled, too: it was asked several times already, ever more slowly.
            Self::Throttled | Self::Unreachable | Self::Silent | Self::Other => ErrorKind::NotReady,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCredentials => {
                "there are no credentials: set the provider's variables in the environment, or give this machine a role"
            }
            Self::NoAccess => {
                "access is denied: check the credentials in the environment, and that they may get, put, list and delete objects there"
            }
            Self::NoBucket => "there is no such bucket: make it, or correct the URL of the store, or the endpoint if the environment sets one",
            Self::OtherRegion => {
                "the bucket is in another region: set AWS_REGION in the environment"
            }
            Self::NoConditionalCreate => {
                "the store has no conditional create (If-None-Match: *), without which writers can't be fenced: use one that has it"
            }
            Self::Throttled => "the store is asked for too much at once: it is tried again, later",
            Self::Unreachable => {
                "it can't be reached: check the network, and the endpoint if the environment sets one"
            }
            Self::PlainHttp => {
                "its endpoint is not https: use one that is, or set AWS_ALLOW_HTTP=true in a network that you trust"
            }
            Self::Silent => "no answer came in time: check the network, and whether the store works",
            Self::Other => "the object store failed",
        })
    }
}

impl Said {
    pub(crate) fn new(text: &str) -> Self {
        let plain = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Self(plain.chars().take(SAID_LIMIT).collect())
    }
}

/// What is wrong, and in whose words.
///
/// The client's errors are private types and repeat each other, so most of it is read from the
/// innermost one's text: a test with a server that answers so holds on to that.
pub(crate) fn diagnose(error: &object_store::Error) -> (Trouble, Said) {
    let whole = error.to_string();
    let innermost = chain(error).last().map(ToString::to_string);
    let innermost = innermost.unwrap_or_default();
    let transport = chain(error).find_map(|error| error.downcast_ref::<HttpError>());
    let answer = Answer::parse(&innermost);
    let trouble = if METADATA.iter().any(|address| whole.contains(address)) {
        Trouble::NoCredentials
    } else if innermost.contains("scheme is not allowed") {
        Trouble::PlainHttp
    } else if let Some(transport) = transport {
        match transport.kind() {
            HttpErrorKind::Connect => Trouble::Unreachable,
            HttpErrorKind::Timeout => Trouble::Silent,
            _ => Trouble::Other,
        }
    } else if innermost.starts_with("Received redirect") {
        Trouble::OtherRegion
    } else if matches!(error, object_store::Error::NotFound { .. }) && !answer.is_of_bucket() {
        // An object may be missing without anything being wrong.
        Trouble::Other
    } else {
        answer.trouble()
    };
    let said = answer.in_words().unwrap_or(innermost);
    (trouble, Said::new(&said))
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| {
        (*error).source()
    })
}

/// An answer that is a refusal.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer<'a> {
    /// The status line.
    status: Option<&'a str>,
    /// What the provider calls it.
    code: Option<&'a str>,
    message: Option<&'a str>,
}

impl<'a> Answer<'a> {
    fn parse(text: &'a str) -> Self {
        let status = text.split_once(STATUS).map(|(_, rest)| rest);
        let status = status.map(|rest| rest.split(':').next().unwrap_or(rest).trim());
        Self {
            status,
            code: between(text, "<Code>", "</Code>").or_else(|| between(text, "(code: ", ")")),
            message: between(text, "<Message>", "</Message>"),
        }
    }

    /// Whether it is the bucket that does not exist.
    fn is_of_bucket(&self) -> bool {
        matches!(self.code, Some("NoSuchBucket" | "ContainerNotFound"))
    }

    fn trouble(&self) -> Trouble {
        match self.code {
            _ if self.is_of_bucket() => return Trouble::NoBucket,
            Some("AuthorizationHeaderMalformed" | "PermanentRedirect") => {
                return Trouble::OtherRegion;
            }
            Some("AccessDenied" | "ExpiredToken" | "InvalidToken") => return Trouble::NoAccess,
            Some("SlowDown" | "ServerBusy") => return Trouble::Throttled,
            Some("NotImplemented") => return Trouble::NoConditionalCreate,
            _ => {}
        }
        let number = self.status.and_then(|status| status.get(..3));
        match number {
            Some("301") => Trouble::OtherRegion,
            Some("404") => Trouble::NoBucket,
            Some("401" | "403") => Trouble::NoAccess,
            Some("429" | "503") => Trouble::Throttled,
            Some("501") => Trouble::NoConditionalCreate,
            _ => Trouble::Other,
        }
    }

    fn in_words(&self) -> Option<String> {
        let status = self.status?;
        Some(match (self.code, self.message) {
            (Some(code), Some(message)) => format!("{status}, {code}: {message}"),
            (Some(code), None) => format!("{status}, {code}"),
            (None, _) => status.to_owned(),
        })
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    let (inside, _) = rest.split_once(after)?;
    Some(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(said: &str) -> (Trouble, String) {
        let text = format!("Server returned non-2xx status code: {said}");
        let error = object_store::Error::Generic {
            store: "S3",
            source: text.into(),
        };
        let (trouble, said) = diagnose(&error);
        (trouble, said.to_string())
    }

    #[test]
    fn an_answer_is_told_in_the_providers_words() {
        let body = "<?xml version=\"1.0\"?>\n<Error><Code>SignatureDoesNotMatch</Code>\n<Message>The signature\n differs.</Message></Error>";
        let (trouble, said) = refused(&format!("403 Forbidden: {body}"));
        assert_eq!(trouble, Trouble::NoAccess);
        assert_eq!(
            said,
            "403 Forbidden, SignatureDoesNotMatch: The signature differs."
        );
        let (_, said) = refused(&format!("500 Internal Server Error: {}", "x".repeat(9999)));
        assert_eq!(said, "500 Internal Server Error");
    }

    #[test]
    fn what_helps_depends_on_the_code_before_the_status() {
        for (said, trouble) in [
            (
                "404 Not Found: <Code>NoSuchBucket</Code>",
                Trouble::NoBucket,
            ),
            (
                "400 Bad Request: <Code>ExpiredToken</Code>",
                Trouble::NoAccess,
            ),
            (
                "400 Bad Request: <Code>AuthorizationHeaderMalformed</Code>",
                Trouble::OtherRegion,
            ),
            (
                "503 Service Unavailable: <Code>SlowDown</Code>",
                Trouble::Throttled,
            ),
            ("501 Not Implemented: ", Trouble::NoConditionalCreate),
            ("500 Internal Server Error: ", Trouble::Other),
            ("418 ", Trouble::Other),
            ("", Trouble::Other),
        ] {
            assert_eq!(refused(said).0, trouble, "{said}");
        }
    }

    #[test]
    fn only_what_passes_by_itself_is_worth_another_try() {
        for (trouble, kind) in [
            (Trouble::Throttled, ErrorKind::NotReady),
            (Trouble::Silent, ErrorKind::NotReady),
            (Trouble::Unreachable, ErrorKind::NotReady),
            (Trouble::NoAccess, ErrorKind::Internal),
            (Trouble::NoBucket, ErrorKind::Internal),
            (Trouble::NoConditionalCreate, ErrorKind::Invalid),
        ] {
            assert_eq!(trouble.kind(), kind);
        }
    }
}
