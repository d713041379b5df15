use std::net::SocketAddr;

use palimpsest_types::{Lsn, NodeId};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    time::Instant,
};

use super::{
    super::stream::tests::{Server, request},
    *,
};
use crate::{broker::Member, tenant_settings::TenantSettings};

const ANYWHERE: &str = "127.0.0.1:0";
const QUICK: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(20);

/// Passes everything on to `server` until it freezes. Then its connections stay as they are, as those of
/// a process that stands still do.
async fn freezing(server: SocketAddr, frozen: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind(ANYWHERE).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut frozen = frozen.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut server) => return,
                    _ = frozen.wait_for(|frozen| *frozen) => {}
                }
                std::future::pending::<()>().await;
            });
        }
    });
    address
}

fn view(addresses: &[SocketAddr]) -> ClusterView {
    let member = |address: &SocketAddr| Member {
        node: NodeId::from_bytes([1; 16]),
        role: Role::PageServe,
        address: address.to_string(),
        version: String::new(),
        tenant_defaults: TenantSettings::default(),
    };
    ClusterView {
        members: addresses.iter().map(member).collect(),
        ..ClusterView::default()
    }
}

#[tokio::test]
async fn p8_another_answers_soon_when_a_page_serve_stands_still() {
    let (first, second) = (Server::start(ANYWHERE).await, Server::start(ANYWHERE).await);
    let (freeze, frozen) = watch::channel(false);
    let first = freezing(first.address, frozen).await;
    let (cluster, seen) = watch::channel(view(&[first]));
    let pool = PagePool {
        ping: QUICK,
        ..PagePool::new(seen)
    };
    assert_eq!(pool.pages(request(7)).await.unwrap().lsn, Lsn::new(7));
    cluster.send_replace(view(&[first, second.address]));
    freeze.send_replace(true);

    let begun = Instant::now();
    let answer = timeout(LIMIT, pool.pages(request(8))).await;
    assert_eq!(answer.unwrap().unwrap().lsn, Lsn::new(8));
    assert!(begun.elapsed() >= QUICK, "the first one was asked");
    let favourite = pool.lock().favourite.clone();
    assert_eq!(favourite, Some(second.address.to_string()));
}
