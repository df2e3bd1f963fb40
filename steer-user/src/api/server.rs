//! The server side: turns requests into commands for the control loop and waits for its answers.

use std::{io, path::Path, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{Answer, Drain, Order, Status};
use crate::{config::OwnInclude, endpoints::Feed};

/// A request to the control loop, with the way back.
#[derive(Debug)]
pub enum Command {
    /// What are you doing?
    Status(oneshot::Sender<Status>),
    /// Read configuration and feed again.
    Reload(oneshot::Sender<Answer>),
    /// Change the endpoint list.
    Endpoints(Order, oneshot::Sender<Answer>),
    /// Publish the plan of this list, from the task that keeps it: the generation, or why not.
    UseFeed(Box<Feed>, oneshot::Sender<Result<u64, String>>),
    /// Publish the plan with these services of a list from a URL.
    UseList(
        String,
        Vec<OwnInclude>,
        oneshot::Sender<Result<u64, String>>,
    ),
    /// Stop steering and leave no trace.
    Detach(Drain, oneshot::Sender<Answer>),
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    /// Ends the server when the answers that are on their way have arrived, or after two seconds.
    pub async fn finish(self) {
        // A task that ended by itself needs no word.
        let _ = self.stop.send(());
        let _ = tokio::time::timeout(Duration::from_secs(2), self.task).await;
    }
}

/// Answers requests on `socket`; a socket that a dead controller left is replaced. Only the owner
/// may connect.
pub fn serve(socket: &Path, commands: mpsc::Sender<Command>) -> io::Result<Server> {
    use std::os::unix::fs::PermissionsExt as _;

    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/reload", post(reload))
        .route("/v1/endpoints", post(endpoints))
        .route("/v1/detach", post(detach))
        .with_state(commands);
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        let server = axum::serve(listener, router).with_graceful_shutdown(stopped);
        if let Err(error) = server.await {
            tracing::error!(
                "the API socket failed: {error}. Steering goes on; restart steer to get the API back"
            );
        }
    });
    Ok(Server { stop, task })
}

type Commands = State<mpsc::Sender<Command>>;

async fn status(State(commands): Commands) -> Response {
    respond(ask(&commands, Command::Status).await)
}

async fn reload(State(commands): Commands) -> Response {
    respond(ask(&commands, Command::Reload).await)
}

async fn endpoints(State(commands): Commands, Json(order): Json<Order>) -> Response {
    respond(ask(&commands, |answer| Command::Endpoints(order, answer)).await)
}

async fn detach(State(commands): Commands, Json(drain): Json<Drain>) -> Response {
    respond(ask(&commands, |answer| Command::Detach(drain, answer)).await)
}

pub(super) async fn ask<T>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    commands.send(command(sender)).await.ok()?;
    receiver.await.ok()
}

fn respond<T: serde::Serialize>(answer: Option<T>) -> Response {
    match answer {
        Some(answer) => Json(answer).into_response(),
        None => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(Answer::refused("the controller is stopping")),
        )
            .into_response(),
    }
}
