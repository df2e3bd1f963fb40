//! One connection of a client's. Its messages come one after the other; answers go back as they come,
//! in whatever order (RFC 7766, 6.2.1.1).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_proto::op::Query;
use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use super::{Counts, Knowledge, add, message, upstream};

/// Without a message in either direction for so long, a connection ends.
const IDLE: Duration = Duration::from_mins(2);
/// How long a breakout's resolver has for an answer, connecting included: libraries wait 5 s.
const NEAR: Duration = Duration::from_secs(2);
/// How long a connection to the server that the client asked may take.
const FAR: Duration = Duration::from_secs(10);
/// Queries of a connection that are answered at a time; more wait.
const AT_ONCE: usize = 16;

type Answers = mpsc::Sender<Vec<u8>>;

/// Serves a client until it, or the server that it asked, has ended.
pub(super) async fn serve(
    stream: TcpStream,
    knowledge: watch::Receiver<Arc<Knowledge>>,
    counts: &Arc<Counts>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let peers = Peers {
        client: stream.peer_addr()?.ip().to_canonical(),
        server: stream.local_addr()?,
    };
    let (reader, writer) = stream.into_split();
    let (answers, to_write) = mpsc::channel(AT_ONCE);
    let (far, to_ask) = mpsc::channel(AT_ONCE);
    let activity = Activity::default();
    let work = async {
        let reading = read(
            reader,
            knowledge,
            counts,
            peers,
            far,
            answers.clone(),
            &activity,
        );
        let relaying = relay(peers, to_ask, answers, &activity);
        tokio::pin!(reading, relaying);
        tokio::select! {
            // The client has asked all; the server may have more to say.
            result = &mut reading => match result {
                Ok(()) => relaying.await,
                Err(error) => Err(error),
            },
            result = &mut relaying => result,
        }
    };
    let (worked, written) = tokio::join!(work, write(writer, to_write));
    worked.and(written)
}

#[derive(Clone, Copy)]
struct Peers {
    client: IpAddr,
    server: SocketAddr,
}

/// When a message came last.
struct Activity(Mutex<Instant>);

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Activity {
    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn end(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) + IDLE
    }
}

/// Reads what the client asks. Ends with it, or when nothing has happened for long.
async fn read(
    stream: OwnedReadHalf,
    knowledge: watch::Receiver<Arc<Knowledge>>,
    counts: &Arc<Counts>,
    peers: Peers,
    far: Answers,
    answers: Answers,
    activity: &Activity,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut asking = JoinSet::new();
    while let Some(query) = next(&mut stream, activity).await? {
        activity.note();
        let known = Arc::clone(&knowledge.borrow());
        let question = message::question(&query);
        let near = question.filter(|question| {
            let name = question.name.to_ascii();
            known.near(peers.client, peers.server.ip(), &name).is_some()
        });
        let Some(question) = near else {
            add(&counts.passed);
            if far.send(query).await.is_err() {
                break;
            }
            continue;
        };
        if asking.len() >= AT_ONCE {
            asking.join_next().await;
        }
        let (answers, far, counts) = (answers.clone(), far.clone(), Arc::clone(counts));
        asking.spawn(async move {
            // Whoever does not listen any more changes nothing.
            if let Some(answer) = ask_near(&known, peers, &question, &query).await {
                add(&counts.near);
                let _ = answers.send(answer).await;
            } else {
                add(&counts.fell_back);
                let _ = far.send(query).await;
            }
        });
    }
    while asking.join_next().await.is_some() {}
    Ok(())
}

/// The next message of one side; none when that has ended, or when neither has said anything for
/// long.
async fn next(
    stream: &mut BufReader<OwnedReadHalf>,
    activity: &Activity,
) -> io::Result<Option<Vec<u8>>> {
    let message = message::read(stream);
    tokio::pin!(message);
    loop {
        let end = activity.end();
        match timeout_at(end, &mut message).await {
            Ok(message) => return message,
            Err(_) if activity.end() == end => return Ok(None),
            Err(_) => {}
        }
    }
}

/// Asks the breakout's resolver; none where it gives no good answer.
async fn ask_near(
    known: &Knowledge,
    peers: Peers,
    question: &Query,
    query: &[u8],
) -> Option<Vec<u8>> {
    let name = question.name.to_ascii();
    let near = known.near(peers.client, peers.server.ip(), &name)?;
    let ask = async {
        let mut stream = upstream::over(near.way, near.resolver).await?;
        message::write(&mut stream, query).await?;
        message::read(&mut stream).await
    };
    let Ok(Ok(Some(answer))) = timeout(NEAR, ask).await else {
        known.note_failure(near.resolver);
        return None;
    };
    message::good_answer(query, question, &answer).map(|_| answer)
}

/// Takes everything else to the server that the client asked, and what that says back. Ends with the
/// server, or when nothing was to be asked.
async fn relay(
    peers: Peers,
    mut queries: mpsc::Receiver<Vec<u8>>,
    answers: Answers,
    activity: &Activity,
) -> io::Result<()> {
    let Some(first) = queries.recv().await else {
        return Ok(());
    };
    let stream = timeout(FAR, upstream::as_client(peers.client, peers.server)).await??;
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.into_split();
    let asking = async {
        message::write(&mut writer, &first).await?;
        while let Some(query) = queries.recv().await {
            message::write(&mut writer, &query).await?;
        }
        writer.shutdown().await?;
        // The answers are the other half's.
        std::future::pending::<io::Result<()>>().await
    };
    let hearing = async {
        let mut reader = BufReader::new(reader);
        while let Some(answer) = next(&mut reader, activity).await? {
            activity.note();
            if answers.send(answer).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    tokio::select! {
        result = asking => result,
        result = hearing => result,
    }
}

/// Writes answers to the client until there are no more to come.
async fn write(mut stream: OwnedWriteHalf, mut answers: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(answer) = answers.recv().await {
        message::write(&mut stream, &answer).await?;
    }
    stream.shutdown().await
}
