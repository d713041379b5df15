//! The context of a trace as it crosses processes: W3C `traceparent`.
//!
//! Without a subscriber that exports traces there is none, and all of this does nothing.

use std::collections::HashMap;

use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The name of the gRPC metadata that carries it.
pub const TRACEPARENT: &str = "traceparent";
/// The target of spans that are only for traces. Without traces they cost nothing.
pub const TARGET: &str = "palimpsest::trace";
/// A `traceparent` is so long; whatever is longer is none.
const MAX_LENGTH: usize = 55;

/// Makes a span, which nobody has entered yet, part of the trace that a caller told.
pub fn follow(span: &Span, traceparent: &str) {
    if traceparent.is_empty() || traceparent.len() > MAX_LENGTH {
        return;
    }
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract(&carrier);
    // Without a subscriber for traces there is nothing to follow.
    let _ = span.set_parent(context);
}
