//! What WAL and layers cost without network and disk, on the log of a real pgbench.

use std::{hint::black_box, path::Path};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use palimpsest_integration::oracle::read_wal;
use palimpsest_layer::{
    DeltaLayer as _, LogRecord, OpenLayer, Visit,
    delta_file::{DeltaLayerIndex, EntryBlock, Footer, write_delta_layer},
};
use palimpsest_testkit::{Cluster, ClusterOptions};
use palimpsest_types::{Key, Lsn, WriterEpoch};
use palimpsest_wal::{BaseFacts, Interpreter, RawRecord, RecordReader, RelationSizes, SegmentSize};

const SIZE: SegmentSize = SegmentSize::DEFAULT;

/// A log, in every shape that it takes on its way.
struct Sample {
    start: Lsn,
    /// As it arrives.
    bytes: Bytes,
    records: Vec<RawRecord>,
    sizes: RelationSizes,
    layer: OpenLayer,
    file: Bytes,
    /// All keys of the layer.
    keys: Vec<Key>,
}

fn engine(criterion: &mut Criterion) {
    #[allow(
        clippy::unwrap_used,
        reason = "without a sample there is nothing to measure"
    )]
    let sample = Sample::make().unwrap();
    wal(criterion, &sample);
    layers(criterion, &sample);
}

fn wal(criterion: &mut Criterion, sample: &Sample) {
    let mut group = criterion.benchmark_group("wal");
    group.throughput(Throughput::Bytes(sample.bytes.len() as u64));
    group.bench_function("frame", |bencher| {
        bencher.iter(|| {
            let mut reader = RecordReader::new(sample.start, SIZE);
            let pushed = reader.push(sample.start, sample.bytes.clone());
            let records = std::iter::from_fn(|| reader.next_record().ok().flatten());
            black_box((pushed.is_ok(), records.count()))
        });
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            let blocks = |record: &RawRecord| record.decode().map_or(0, |it| it.blocks.len());
            black_box(sample.records.iter().map(blocks).sum::<usize>())
        });
    });
    group.bench_function("interpret", |bencher| {
        bencher.iter(|| {
            let mut interpreter = interpreter(&sample.sizes);
            let changes = |record| interpreter.interpret(record).map_or(0, |it| it.len());
            black_box(sample.records.iter().map(changes).sum::<usize>())
        });
    });
    group.finish();
}

fn layers(criterion: &mut Criterion, sample: &Sample) {
    let mut group = criterion.benchmark_group("layer");
    group.throughput(Throughput::Bytes(sample.layer.size().get()));
    group.bench_function("write delta", |bencher| {
        bencher.iter(|| black_box(write_delta_layer(&sample.layer, Vec::new()).is_ok()));
    });
    group.throughput(Throughput::Elements(1));
    let mut keys = sample.keys.iter().cycle();
    group.bench_function("newest version in memory", |bencher| {
        bencher.iter(|| {
            let mut found = None;
            let key = keys.next().copied().unwrap_or(Key::Parameters);
            sample
                .layer
                .versions(key, Lsn::new(u64::MAX), &mut |lsn, _| {
                    found = Some(lsn);
                    Visit::Stop
                });
            black_box(found)
        });
    });
    #[allow(clippy::unwrap_used, reason = "written a moment ago")]
    let index = index_of(&sample.file).unwrap();
    let mut keys = sample.keys.iter().cycle();
    group.bench_function("newest version in a file, block not cached", |bencher| {
        bencher.iter(|| {
            let key = keys.next().copied().unwrap_or(Key::Parameters);
            black_box(newest_in_file(&index, &sample.file, key))
        });
    });
    group.finish();
}

fn interpreter(sizes: &RelationSizes) -> Interpreter {
    Interpreter::new(sizes.clone(), BaseFacts::consistent())
}

fn index_of(file: &Bytes) -> Result<DeltaLayerIndex> {
    let end = file.slice(file.len() - Footer::LEN..);
    let footer = Footer::decode(&end, file.len() as u64)?;
    let from = usize::try_from(footer.index_offset)?;
    let index = file.slice(from..from + usize::try_from(footer.index_len)?);
    Ok(DeltaLayerIndex::decode(&footer, &index)?)
}

fn newest_in_file(index: &DeltaLayerIndex, file: &Bytes, key: Key) -> Option<Lsn> {
    let no = index.blocks_of(key, Lsn::new(u64::MAX)).next()?;
    let place = index.place(no).ok()?;
    let from = usize::try_from(place.offset).ok()?;
    let stored = file.slice(from..from + place.stored_len as usize);
    let block = EntryBlock::decode(index, no, stored).ok()?;
    let mut versions = block.versions(key, Lsn::new(u64::MAX));
    versions.next().map(|(lsn, _)| lsn)
}

impl Sample {
    fn make() -> Result<Self> {
        let mut cluster = Cluster::temporary(ClusterOptions::default())?;
        cluster.start()?;
        cluster.pgbench(&["--initialize", "--quiet", "--scale=5", "postgres"])?;
        let start = cluster.switch_wal()?;
        cluster.pgbench(&[
            "--client=4",
            "--transactions=5000",
            "--no-vacuum",
            "postgres",
        ])?;
        cluster.stop()?;
        Self::of(&cluster.data_dir().join("pg_wal"), start)
    }

    fn of(pg_wal: &Path, after: Lsn) -> Result<Self> {
        // The switch fills its segment: the next record begins a new one.
        let start = SIZE.round_up(after).context("the log is at its end")?;
        let first = SIZE.number_of(start);
        let (mut records, mut sizes) = (Vec::new(), RelationSizes::default());
        let end = read_wal(pg_wal, start, SIZE, |record| {
            for block in record.decode()?.blocks {
                let end = block.block.next().max(sizes.get(block.rel));
                sizes.set(block.rel, end.unwrap_or_default());
            }
            records.push(record);
            Ok(())
        })?;
        let mut bytes = Vec::new();
        let mut segment = first;
        while SIZE.start_of(segment).is_some_and(|start| start < end) {
            bytes.extend(std::fs::read(pg_wal.join(SIZE.file_name(1, segment)))?);
            segment = segment.next();
        }
        bytes.truncate(usize::try_from(end.saturating_sub(start))?);
        let layer = layer_of(&records, &sizes, start)?;
        let mut file = Vec::new();
        write_delta_layer(&layer, &mut file)?;
        let mut keys: Vec<_> = layer.entries().map(|(key, _, _)| key).collect();
        keys.dedup();
        Ok(Self {
            start,
            bytes: bytes.into(),
            records,
            sizes,
            layer,
            file: file.into(),
            keys,
        })
    }
}

fn layer_of(records: &[RawRecord], sizes: &RelationSizes, start: Lsn) -> Result<OpenLayer> {
    let mut interpreter = interpreter(sizes);
    let mut layer = OpenLayer::new(WriterEpoch::FIRST, start);
    for record in records {
        let changes = interpreter.interpret(record)?;
        if !changes.is_empty() {
            let lsn = record.end_lsn;
            layer.append(LogRecord { lsn, changes })?;
        }
    }
    Ok(layer)
}

criterion_group!(benches, engine);
criterion_main!(benches);
