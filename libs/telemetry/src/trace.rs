//! The context of a trace as it crosses processes: W3C `traceparent`.
//!
//! Without a subscriber that exports traces there is none, and all of this does nothing.

use std::collections::HashMap;

use opentelemetry::{
    propagation::TextMapPropagator as _,
    trace::{TraceContextExt as _, TraceFlags},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Span, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The name of the gRPC metadata that carries it.
pub const TRACEPARENT: &str = "traceparent";
/// The target of spans that are only for traces; all of them have the level `DEBUG`. Without traces
/// they cost nothing.
pub const TARGET: &str = "palimpsest::trace";
/// A `traceparent` is so long; whatever is longer is none.
const MAX_LENGTH: usize = 55;

/// The `traceparent` of the current span, if that is part of a trace. While nobody exports traces
/// this allocates nothing and, unless the log shows DEBUG, looks at one number, so it may stand on a
/// hot path.
pub fn current() -> Option<String> {
    if LevelFilter::current() < LevelFilter::DEBUG {
        return None;
    }
    let context = Span::current().context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| {
        let flags = context.trace_flags() & TraceFlags::SAMPLED;
        format!(
            "00-{}-{}-{flags:02x}",
            context.trace_id(),
            context.span_id()
        )
    })
}

/// Makes a span, which nobody has entered yet, part of the trace that a caller told.
pub fn follow(span: &Span, traceparent: &str) {
    if span.is_disabled() || traceparent.is_empty() || traceparent.len() > MAX_LENGTH {
        return;
    }
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract(&carrier);
    // Without a subscriber for traces there is nothing to follow.
    let _ = span.set_parent(context);
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing::subscriber::with_default;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn traced<T>(work: impl FnOnce() -> T) -> T {
        let tracer = SdkTracerProvider::builder().build().tracer("test");
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        with_default(tracing_subscriber::registry().with(layer), work)
    }

    #[test]
    fn what_is_followed_is_told_on_with_a_span_of_its_own() {
        let told = traced(|| {
            let span = tracing::debug_span!(target: TARGET, parent: None, "outer");
            follow(&span, PARENT);
            let inner = span.in_scope(|| tracing::debug_span!(target: TARGET, "inner"));
            inner.in_scope(current).unwrap()
        });
        assert_eq!(told.len(), MAX_LENGTH);
        assert!(told.starts_with(&format!("00-{TRACE}-")), "{told}");
        assert!(told.ends_with("-01"), "{told}");
        assert_ne!(told, PARENT);
    }

    #[test]
    fn nonsense_is_not_followed() {
        for nonsense in [
            "",
            "00",
            "zz",
            &format!("00-{TRACE}-{TRACE}-01"),
            &"0".repeat(99),
        ] {
            let told = traced(|| {
                let span = tracing::debug_span!(target: TARGET, parent: None, "outer");
                follow(&span, nonsense);
                span.in_scope(current).unwrap()
            });
            assert!(!told.contains(TRACE), "{nonsense:?}: {told}");
        }
    }

    #[test]
    fn without_a_span_or_without_traces_there_is_nothing_to_tell() {
        assert_eq!(traced(current), None);
        let span = tracing::debug_span!(target: TARGET, parent: None, "outer");
        assert_eq!(span.in_scope(current), None);
        let told = with_default(tracing_subscriber::registry(), || {
            let span = tracing::debug_span!(target: TARGET, parent: None, "outer");
            span.in_scope(current)
        });
        assert_eq!(told, None);
    }
}
