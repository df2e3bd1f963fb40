//! One connection of a client's. Its messages come one after the other; answers go back as they come,
//! in whatever order (RFC 7766, 6.2.1.1).

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use hickory_proto::op::{Message, Query};
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

use super::{Counts, Knowledge, add, knowledge::Meaning, message, upstream};

/// Without a message in either direction for so long, a connection ends.
const IDLE: Duration = Duration::from_mins(2);
/// How long a breakout's resolver has for an answer, connecting included: libraries wait 5 s.
const NEAR: Duration = Duration::from_secs(2);
/// How long a connection to the server that the client asked may take.
const FAR: Duration = Duration::from_secs(10);
/// Queries of a connection that are answered at a time; more wait.
const AT_ONCE: usize = 16;
/// Questions that the server is asked, and whose answers teach; those of more teach nothing.
const LESSONS: usize = 64;

type Answers = mpsc::Sender<Vec<u8>>;

/// Serves a client until it, or the server that it asked, has ended.
pub(super) async fn serve(
    stream: TcpStream,
    knowledge: watch::Receiver<Arc<Knowledge>>,
    counts: &Arc<Counts>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let session = Arc::new(Session {
        client: stream.peer_addr()?.ip().to_canonical(),
        server: stream.local_addr()?,
        knowledge,
        counts: Arc::clone(counts),
        activity: Activity::default(),
        lessons: Mutex::default(),
    });
    let (reader, writer) = stream.into_split();
    let (answers, to_write) = mpsc::channel(AT_ONCE);
    let (far, to_ask) = mpsc::channel(AT_ONCE);
    let work = async {
        let reading = read(&session, reader, far, answers.clone());
        let relaying = relay(&session, to_ask, answers);
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

/// What both directions of a connection share.
struct Session {
    client: IpAddr,
    /// Whom the client asked.
    server: SocketAddr,
    knowledge: watch::Receiver<Arc<Knowledge>>,
    counts: Arc<Counts>,
    activity: Activity,
    /// What is to be learned from the server's answers, by their ids.
    lessons: Mutex<HashMap<[u8; 2], Awaited>>,
}

/// An answer that is to teach.
struct Awaited {
    question: Query,
    meaning: Meaning,
}

impl Session {
    fn known(&self) -> Arc<Knowledge> {
        Arc::clone(&self.knowledge.borrow())
    }

    /// The server will be asked; its answer is to teach if it means something for the plan.
    fn expect(&self, known: &Knowledge, question: Query, query: &[u8]) {
        let meaning = known.meaning(self.client, &question.name.to_ascii());
        let (Some(meaning), Some(id)) = (meaning, message::id(query)) else {
            return;
        };
        let mut lessons = self.lessons.lock().unwrap_or_else(PoisonError::into_inner);
        if lessons.len() < LESSONS {
            lessons.insert(id, Awaited { question, meaning });
        }
    }

    /// The server answered; the client has not heard of it yet.
    fn hear(&self, answer: &[u8]) {
        let Some(id) = message::id(answer) else {
            return;
        };
        let mut lessons = self.lessons.lock().unwrap_or_else(PoisonError::into_inner);
        let awaited = lessons.remove(&id);
        drop(lessons);
        if let Some(awaited) = awaited
            && let Some(answer) = message::good_answer(id, &awaited.question, answer)
        {
            self.teach(&self.known(), &awaited.meaning, &answer);
        }
    }

    fn teach(&self, known: &Knowledge, meaning: &Meaning, answer: &Message) {
        let learned = known.teach(meaning, answer);
        self.counts.learned.fetch_add(learned, Ordering::Relaxed);
    }
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
    session: &Arc<Session>,
    stream: OwnedReadHalf,
    far: Answers,
    answers: Answers,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut asking = JoinSet::new();
    while let Some(query) = next(&mut stream, &session.activity).await? {
        session.activity.note();
        let known = session.known();
        let question = message::question(&query);
        let near = question.clone().filter(|question| {
            let (client, server) = (session.client, session.server.ip());
            let name = question.name.to_ascii();
            known.near(client, server, &name).is_some()
        });
        let Some(question) = near else {
            if let Some(question) = question {
                session.expect(&known, question, &query);
            }
            add(&session.counts.passed);
            if far.send(query).await.is_err() {
                break;
            }
            continue;
        };
        if asking.len() >= AT_ONCE {
            asking.join_next().await;
        }
        let (answers, far, session) = (answers.clone(), far.clone(), Arc::clone(session));
        asking.spawn(async move {
            // Whoever does not listen any more changes nothing.
            if let Some(answer) = ask_near(&session, &known, &question, &query).await {
                add(&session.counts.near);
                let _ = answers.send(answer).await;
            } else {
                add(&session.counts.fell_back);
                session.expect(&known, question, &query);
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

/// Asks the breakout's resolver, and learns from what it says; none where it gives no good answer.
async fn ask_near(
    session: &Session,
    known: &Knowledge,
    question: &Query,
    query: &[u8],
) -> Option<Vec<u8>> {
    let name = question.name.to_ascii();
    let near = known.near(session.client, session.server.ip(), &name)?;
    let ask = async {
        let mut stream = upstream::over(near.way, near.resolver).await?;
        message::write(&mut stream, query).await?;
        message::read(&mut stream).await
    };
    let Ok(Ok(Some(answer))) = timeout(NEAR, ask).await else {
        known.note_failure(near.resolver);
        return None;
    };
    let good = message::good_answer(message::id(query)?, question, &answer)?;
    if let Some(meaning) = known.meaning(session.client, &name) {
        session.teach(known, &meaning, &good);
    }
    Some(answer)
}

/// Takes everything else to the server that the client asked, and what that says back. Ends with the
/// server, or when nothing was to be asked.
async fn relay(
    session: &Session,
    mut queries: mpsc::Receiver<Vec<u8>>,
    answers: Answers,
) -> io::Result<()> {
    let Some(first) = queries.recv().await else {
        return Ok(());
    };
    let stream = timeout(FAR, upstream::as_client(session.client, session.server)).await??;
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
        while let Some(answer) = next(&mut reader, &session.activity).await? {
            session.activity.note();
            session.hear(&answer);
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
