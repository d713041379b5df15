//! Telling the storage-broker that a service is alive.

use std::{sync::Arc, time::Duration};

use palimpsest_api::{
    RemoteError, TimelineRef,
    broker::{Assignment, BrokerClient, Member, Role, TimelineStatus},
};
use palimpsest_runtime::TaskScope;
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

/// How often a service says that it is alive. A service lives on, quietly, while nobody listens.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    /// Where the storage-broker is, as `host:port`.
    pub broker: String,
    /// Who is alive.
    pub member: Member,
    /// Time between two heartbeats.
    pub period: Duration,
    /// Whoever notifies this has a heartbeat sent soon, in place of waiting until it is time for the next.
    pub news: Arc<Notify>,
}

/// Whether the storage-broker was there when last looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contact {
    Untried,
    Made,
    Lost,
}

/// News come in groups, and one heartbeat tells them all.
const GATHERING: Duration = Duration::from_millis(20);
/// How long the end of a service waits for the broker.
const GOODBYE: Duration = Duration::from_millis(500);

impl Heartbeat {
    /// Unless told otherwise, every half second.
    pub const PERIOD: Duration = Duration::from_millis(500);

    /// A heartbeat of `member` with the usual period.
    pub fn new(broker: impl Into<String>, member: Member) -> Self {
        Self {
            broker: broker.into(),
            member,
            period: Self::PERIOD,
            news: Arc::default(),
        }
    }

    /// Beats in `scope`: sends what `statuses` gives, and gives `assignments` what comes back.
    ///
    /// # Errors
    /// If the broker's address is not one.
    pub fn start(
        self,
        scope: &TaskScope,
        statuses: impl FnMut() -> Vec<(TimelineRef, TimelineStatus)> + Send + 'static,
        assignments: impl FnMut(Vec<Assignment>) + Send + 'static,
    ) -> Result<(), RemoteError> {
        let client = BrokerClient::new(&self.broker)?;
        let token = scope.token().clone();
        scope.spawn("heartbeat", async move {
            let (member, leaving) = (self.member.clone(), client.clone());
            let beating = self.beat(client, statuses, assignments);
            // A heartbeat that is dropped half sent is as good as none.
            token.run_until_cancelled(beating).await;
            say_goodbye(&member, leaving).await;
        });
        Ok(())
    }

    async fn beat(
        self,
        mut client: BrokerClient,
        mut statuses: impl FnMut() -> Vec<(TimelineRef, TimelineStatus)>,
        mut assignments: impl FnMut(Vec<Assignment>),
    ) {
        let mut ticks = interval(self.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut contact = Contact::Untried;
        loop {
            // Cancel-safe: neither a tick nor news are lost when dropped.
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.news.notified() => sleep(GATHERING).await,
            }
            let answer = client.heartbeat(self.member.clone(), statuses()).await;
            contact = contact.after(answer.as_ref().err(), &self.broker);
            if let Ok(assigned) = answer {
                assignments(assigned);
            }
        }
    }
}

/// Has the broker tell nobody of this member any more. If it is not there, the lease does the same.
async fn say_goodbye(member: &Member, mut client: BrokerClient) {
    // A writer's timelines would be given to another one while it still flushes and publishes; they
    // wait for the lease instead.
    if member.role == Role::WalIngest {
        return;
    }
    if let Ok(Err(error)) = timeout(GOODBYE, client.leave(member.node)).await {
        tracing::debug!(%error, "the storage-broker was not there for a goodbye");
    }
}

impl Contact {
    /// Says once that the broker has gone and once that it is back.
    fn after(self, error: Option<&RemoteError>, broker: &str) -> Self {
        match (self, error) {
            (Self::Lost, Some(_)) | (Self::Made, None) => self,
            (Self::Untried | Self::Made, Some(error)) => {
                tracing::warn!(broker, %error, "the storage-broker is not there; going on without");
                Self::Lost
            }
            (Self::Untried, None) => {
                tracing::debug!(broker, "registered with the storage-broker");
                Self::Made
            }
            (Self::Lost, None) => {
                tracing::info!(broker, "the storage-broker is back");
                Self::Made
            }
        }
    }
}
