//! The object store of a process that strikes itself.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    path::Path as FilePath,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result, path::Path,
};
use rustix::process::{Signal, getpid, kill_process};
use tokio::time::sleep;

use super::{
    Action, Entry, Moment, Plan, Step,
    steps::{Known, deleting, is_manifest, listing, reading},
};

/// A store that notes each step of the work in a diary, and strikes as planned.
#[derive(Debug)]
pub(super) struct StruckStore {
    inner: Arc<dyn ObjectStore>,
    striker: Arc<Striker>,
}

#[derive(Debug)]
struct Striker {
    plan: Plan,
    work: Mutex<Work>,
}

/// What was done so far.
#[derive(Debug)]
struct Work {
    diary: File,
    known: Known,
    /// How many steps of a kind have begun, and how many have taken effect.
    counts: BTreeMap<(Moment, Step), u32>,
}

/// Any thread of the process may take the signal: so long this one does nothing.
const TAKEN: Duration = Duration::from_millis(300);
/// With this much before and after each of the first uploads the work takes so long that a claim of a
/// second is renewed.
const PACE: Duration = Duration::from_millis(600);
const PACED: u32 = 2;

impl StruckStore {
    /// The store `inner`; the diary goes on in a file.
    pub(super) fn new(
        inner: Arc<dyn ObjectStore>,
        diary: &FilePath,
        plan: Plan,
    ) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(diary);
        let file = file.with_context(|| format!("opening {}", diary.display()))?;
        let work = Work {
            diary: file,
            known: Known::default(),
            counts: BTreeMap::new(),
        };
        let striker = Arc::new(Striker {
            plan,
            work: Mutex::new(work),
        });
        Ok(Self { inner, striker })
    }
}

impl Striker {
    /// An operation with what is before and after it, if it is a step.
    async fn around<T>(
        &self,
        step: Option<Step>,
        path: &Path,
        operation: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let Some(step) = step else {
            return operation.await;
        };
        self.meet(Moment::Before, step, path).await?;
        let done = operation.await?;
        self.meet(Moment::After, step, path).await?;
        Ok(done)
    }

    fn count(&self, moment: Moment, step: Step) -> u32 {
        let mut work = self.work();
        let count = work.counts.entry((moment, step)).or_default();
        *count += 1;
        *count
    }

    async fn meet(&self, moment: Moment, step: Step, path: &Path) -> Result<()> {
        let number = self.count(moment, step);
        let entry = Entry {
            moment,
            step,
            number,
            object: path.filename().unwrap_or_default().to_owned(),
        };
        let noted = entry.write(&mut self.work().diary);
        noted.map_err(|source| object_store::Error::Generic {
            store: "struck",
            source: source.into(),
        })?;
        if let Some(action) = self.plan.action(moment, step, number) {
            strike(action).await;
        }
        // Only work that takes its time renews a claim, and hears before its end that it has lost it.
        let slow = self.plan.has(Step::Renew) || self.plan.has(Step::Remove);
        if slow && step == Step::Upload && number <= PACED {
            sleep(PACE).await;
        }
        Ok(())
    }

    /// Notes what is read of a manifest, on its way to who has asked for it.
    async fn pass_on(&self, path: &Path, mut found: GetResult) -> Result<GetResult> {
        let (meta, range) = (found.meta.clone(), found.range.clone());
        let attributes = std::mem::take(&mut found.attributes);
        let extensions = std::mem::take(&mut found.extensions);
        let object = found.bytes().await?;
        self.work().known.note(path, &object);
        let bytes = stream::once(async move { Ok(object) }).boxed();
        Ok(GetResult {
            payload: GetResultPayload::Stream(bytes),
            meta,
            range,
            attributes,
            extensions,
        })
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends this process the signal; nothing goes on before it has arrived.
async fn strike(action: Action) {
    let signal = match action {
        Action::Kill => Signal::KILL,
        Action::Halt => Signal::STOP,
    };
    // Nobody may be kept from signalling itself.
    let _ = kill_process(getpid(), signal);
    sleep(TAKEN).await;
}

impl fmt::Display for StruckStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "struck {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for StruckStore {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let object = Bytes::from(payload.clone());
        let step = self.striker.work().known.creating(path, &object);
        let put = async {
            let put = self.inner.put_opts(path, payload, options).await?;
            self.striker.work().known.note(path, &object);
            Ok(put)
        };
        self.striker.around(step, path, put).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let is_whole = !options.head && options.range.is_none();
        let get = self.inner.get_opts(path, options);
        let found = self.striker.around(reading(path), path, get).await?;
        match is_whole && is_manifest(path) {
            true => self.striker.pass_on(path, found).await,
            false => Ok(found),
        }
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (inner, striker) = (Arc::clone(&self.inner), Arc::clone(&self.striker));
        let delete = move |path: Result<Path>| {
            let (inner, striker) = (Arc::clone(&inner), Arc::clone(&striker));
            async move {
                let path = path?;
                let delete = inner.delete(&path);
                striker.around(deleting(&path), &path, delete).await?;
                Ok(path)
            }
        };
        paths.then(delete).boxed()
    }

    fn list(&self, below: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listing = below.and_then(|path| Some((path.clone(), listing(path)?)));
        let objects = self.inner.list(below);
        let Some((path, step)) = listing else {
            return objects;
        };
        let striker = Arc::clone(&self.striker);
        let list = async move {
            // Collected, so that before and after it are what they say.
            let all = async { Ok(objects.collect::<Vec<_>>().await) };
            match striker.around(Some(step), &path, all).await {
                Ok(objects) => objects,
                Err(error) => vec![Err(error)],
            }
        };
        stream::once(list).flat_map(stream::iter).boxed()
    }

    async fn list_with_delimiter(&self, below: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(below).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
