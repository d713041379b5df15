//! What is known anyway and needs no counting: read when somebody asks.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

/// A metric and what it is now, for each of its label sets.
#[derive(Debug)]
pub struct Sample {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    values: Vec<(Labels, f64)>,
}

/// Samples from a function.
pub struct Sampled(Box<dyn Fn() -> Vec<Sample> + Send + Sync>);

type Labels = Vec<(&'static str, String)>;

impl Sample {
    /// What may rise and fall; no values yet.
    pub fn gauge(name: &'static str, unit: Option<Unit>, help: &'static str) -> Self {
        Self::new(name, unit, help, MetricType::Gauge)
    }

    /// What only rises; no values yet.
    pub fn counter(name: &'static str, unit: Option<Unit>, help: &'static str) -> Self {
        Self::new(name, unit, help, MetricType::Counter)
    }

    fn new(name: &'static str, unit: Option<Unit>, help: &'static str, kind: MetricType) -> Self {
        Self {
            name,
            help,
            unit,
            kind,
            values: Vec::new(),
        }
    }

    /// The value for these labels.
    pub fn push<const N: usize>(&mut self, labels: [(&'static str, String); N], value: f64) {
        self.values.push((labels.into(), value));
    }

    /// With its only value.
    #[must_use]
    pub fn of(mut self, value: f64) -> Self {
        self.push([], value);
        self
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let unit = self.unit.as_ref();
        // A full stop, as the other metrics have it.
        let help = format!("{}.", self.help);
        let mut metric = encoder.encode_descriptor(self.name, &help, unit, self.kind)?;
        for (labels, value) in &self.values {
            let mut metric = metric.encode_family(labels)?;
            match self.kind {
                MetricType::Counter => metric.encode_counter::<NoLabelSet, _, f64>(value, None)?,
                _ => metric.encode_gauge(value)?,
            }
        }
        Ok(())
    }
}

impl Sampled {
    /// Asks `samples` whenever metrics are read; it has to be quick.
    pub fn new(samples: impl Fn() -> Vec<Sample> + Send + Sync + 'static) -> Box<Self> {
        Box::new(Self(Box::new(samples)))
    }
}

impl fmt::Debug for Sampled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sampled")
    }
}

impl Collector for Sampled {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)()
            .iter()
            .try_for_each(|sample| sample.encode(&mut encoder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{registry, render};

    #[test]
    fn is_read_anew_each_time_with_its_labels() {
        let mut registry = registry("wal-ingest");
        registry.register_collector(Sampled::new(|| {
            let mut lag = Sample::gauge("lag", Some(Unit::Bytes), "Behind the source");
            lag.push([("timeline", "t".to_owned())], 7.0);
            vec![lag, Sample::counter("deaths", None, "Deaths").of(2.0)]
        }));
        let text = render(&registry);
        let line = "palimpsest_lag_bytes{service=\"wal-ingest\",timeline=\"t\"} 7.0";
        assert!(text.contains(line), "{text}");
        assert!(
            text.contains("# HELP palimpsest_lag_bytes Behind the source."),
            "{text}"
        );
        assert!(
            text.contains("palimpsest_deaths_total{service=\"wal-ingest\"} 2.0"),
            "{text}"
        );
    }
}
