//! What [`Status`] knows as OpenMetrics over HTTP, for a monitoring system. Read-only, and off unless
//! the configuration names an address.

mod families;

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    task::JoinHandle,
    time::Instant,
};

use super::{Command, Status, server::ask};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Whoever asks more often gets the same answer: the control loop has better things to do.
const FRESH: Duration = Duration::from_secs(1);

/// The server, which may be off.
#[derive(Debug)]
pub struct Metrics {
    commands: mpsc::Sender<Command>,
    listening: Option<(SocketAddr, JoinHandle<()>)>,
}

impl Metrics {
    /// Off, at first.
    pub fn new(commands: mpsc::Sender<Command>) -> Self {
        Self {
            commands,
            listening: None,
        }
    }

    /// Where it answers.
    pub fn listening(&self) -> Option<SocketAddr> {
        let (address, task) = self.listening.as_ref()?;
        (!task.is_finished()).then_some(*address)
    }

    /// Answers at `wanted` from now on, or nowhere. Fails when the address cannot be had; then it
    /// answers nowhere.
    pub async fn listen(&mut self, wanted: Option<SocketAddr>) -> io::Result<()> {
        if self.listening() == wanted {
            return Ok(());
        }
        if let Some((_, old)) = self.listening.take() {
            old.abort();
            // It was cancelled: the address is free again.
            let _ = old.await;
        }
        let Some(address) = wanted else { return Ok(()) };
        let listener = TcpListener::bind(address).await?;
        let scrapes = Arc::new(Scrapes {
            commands: self.commands.clone(),
            last: Mutex::new(None),
        });
        let router = Router::new()
            .route("/metrics", get(scrape))
            .with_state(scrapes);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::warn!("metrics on {address}: {error}");
            }
        });
        self.listening = Some((address, task));
        Ok(())
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.listening {
            task.abort();
        }
    }
}

struct Scrapes {
    commands: mpsc::Sender<Command>,
    last: Mutex<Option<(Instant, String)>>,
}

async fn scrape(State(scrapes): State<Arc<Scrapes>>) -> Response {
    let mut last = scrapes.last.lock().await;
    let text = match &*last {
        Some((when, text)) if when.elapsed() < FRESH => text.clone(),
        _ => {
            let Some(status) = ask(&scrapes.commands, Command::Status).await else {
                return StatusCode::SERVICE_UNAVAILABLE.into_response();
            };
            let Ok(text) = open_metrics(status) else {
                return StatusCode::INTERNAL_SERVER_ERROR.into_response();
            };
            *last = Some((Instant::now(), text.clone()));
            text
        }
    };
    ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}

/// The text of a scrape.
pub fn open_metrics(status: Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("steer");
    registry.register_collector(Box::new(status));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
