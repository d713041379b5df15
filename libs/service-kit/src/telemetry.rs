//! Where events and traces go: events to standard error, for people or for machines; traces to the
//! collector that the standard `OTEL_…` variables name, if they name one.

use std::{
    env,
    io::{self, IsTerminal as _},
};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use palimpsest_telemetry::trace::TARGET;
use serde::{Deserialize, Serialize};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Pretty,
    /// One JSON object per line.
    Json,
}

/// What is to be sent before the process ends.
#[derive(Debug, Default)]
#[must_use = "traces that were not sent are lost"]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

/// Either of these turns traces on; what else they say is read by the exporter.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
];
/// Names the service to the collector, unless `OTEL_SERVICE_NAME` does.
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";

/// Begins to write events to standard error: those that `RUST_LOG` selects, else `info` and up. And
/// to export traces under the name of `service`, if a collector is named; within a runtime, then.
///
/// Only the first call in a process has an effect, so that services can share one.
pub fn init(service: &'static str, format: LogFormat) -> Telemetry {
    let selected = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .from_env_lossy();
    let events = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let events = match format {
        LogFormat::Pretty => events.boxed(),
        LogFormat::Json => events.json().boxed(),
    };
    let exporter = has_collector().then(|| SpanExporter::builder().with_tonic().build());
    let (traces, failed) = match exporter {
        None => (None, None),
        Some(Ok(exporter)) => (Some(provider(service, exporter)), None),
        Some(Err(error)) => (None, Some(error)),
    };
    let only_traces = Targets::new().with_target(TARGET, LevelFilter::DEBUG);
    let spans = traces.as_ref().map(|provider| {
        let layer = tracing_opentelemetry::layer();
        let tracer = provider.tracer("palimpsest");
        layer.with_tracer(tracer).with_filter(only_traces)
    });
    let outcome = tracing_subscriber::registry()
        .with(events.with_filter(selected))
        .with(spans)
        .try_init();
    if let Err(error) = outcome {
        tracing::debug!(%error, "telemetry is set up already");
    }
    if let Some(error) = failed {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "traces are not exported"
        );
    }
    Telemetry { traces }
}

fn has_collector() -> bool {
    let is_set = |name: &&str| env::var_os(name).is_some_and(|value| !value.is_empty());
    ENDPOINTS.iter().any(is_set)
}

fn provider(service: &'static str, exporter: SpanExporter) -> SdkTracerProvider {
    let named = env::var_os(SERVICE_NAME).is_some();
    let resource = match named {
        true => Resource::builder().build(),
        false => Resource::builder().with_service_name(service).build(),
    };
    SdkTracerProvider::builder()
        .with_resource(resource)
        .with_batch_exporter(exporter)
        .build()
}

impl Telemetry {
    /// Sends what has not been sent.
    pub async fn finish(self) {
        let Some(traces) = self.traces else {
            return;
        };
        // It waits for the collector, for a bounded time.
        let sent = tokio::task::spawn_blocking(move || traces.shutdown()).await;
        if let Ok(Err(error)) = sent {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}
