//! Registries, and how they are written.

use prometheus_client::{
    encoding::text,
    metrics::histogram::{Histogram, exponential_buckets},
    registry::Registry,
};

/// A registry of a service: names begin with `palimpsest_`, and everything has the service's name.
pub fn registry(service: &'static str) -> Registry {
    let label = [("service".into(), service.into())];
    Registry::with_prefix_and_labels("palimpsest", label.into_iter())
}

/// Everything in it, as Prometheus reads it.
pub fn render(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a string can't fail; what a broken metric leaves out is seen to be missing.
    let _ = text::encode(&mut text, registry);
    text
}

/// Times from 20 microseconds to 10 seconds and more.
pub fn latencies() -> Histogram {
    Histogram::new(exponential_buckets(2e-5, 2.0, 20))
}

/// Numbers of things from 1 to 1024 and more.
pub fn sizes() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 11))
}

#[cfg(test)]
mod tests {
    use prometheus_client::{metrics::counter::Counter, registry::Unit};

    use super::*;

    #[test]
    fn names_have_prefix_and_unit_and_say_whose_they_are() {
        let mut registry = registry("page-serve");
        let counter = Counter::<u64>::default();
        registry.register_with_unit("wal", "WAL", Unit::Bytes, counter.clone());
        counter.inc_by(3);
        let text = render(&registry);
        assert!(text.contains("# HELP palimpsest_wal_bytes WAL."), "{text}");
        assert!(
            text.contains("# TYPE palimpsest_wal_bytes counter"),
            "{text}"
        );
        let line = "palimpsest_wal_bytes_total{service=\"page-serve\"} 3";
        assert!(text.contains(line), "{text}");
    }
}
