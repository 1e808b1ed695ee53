//! Clients of a broker: [`Bus`], to program against, and [`Client`], one plain connection, which the commands use.
//!
//! ```text
//! Bus ─ commands, words ─▶ task.rs (connections) ─▶ state.rs ─▶ member.rs ─ queue ─▶ Consumer, handlers
//! ```
//!
//! Publishing, and doing what was published, once, whoever dies meanwhile:
//!
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/in_process.rs"));
//! # fn main() -> Result<(), Box<dyn std::error::Error>> { with_broker(example) }
//! use castra::core::client::{Bus, Target};
//! use serde_json::json;
//!
//! async fn example(target: Target) -> Result<(), Box<dyn std::error::Error>> {
//!     let bus = Bus::connect(&target, "devbox").await?;
//!
//!     let subscription = bus
//!         .subscribe("heartbeat.received", "ops", |event, _| async move {
//!             let heartbeat: serde_json::Value = event.payload()?;
//!             println!("{} is at {} %", heartbeat["name"], heartbeat["cpu_pct"]);
//!             Ok(())
//!         })
//!         .earliest()
//!         .await?;
//!
//!     let heartbeat = json!({"pid": 12345, "name": "stt", "cpu_pct": 12.3});
//!     let stored = bus.publish("heartbeat.received", heartbeat).tags(["#duck", "#stt"]).await?;
//!     assert_eq!(stored.seq, 1);
//!
//!     while bus.cursor("ops").await? < Some(stored.seq) {
//!         tokio::task::yield_now().await;
//!     }
//!     subscription.stop().await;
//!     Ok(())
//! }
//! ```
//!
//! A handler that returns `Ok` acks the event, durably; one that returns an error, which is anything that can be printed,
//! nacks it: it comes again after a wait, and after five attempts (or [`Nack::term`]) it is in the dead letters,
//! `$dlq.<group>`. Handlers of one subscription run side by side, [`max_in_flight`](Subscribe::max_in_flight) of them.
//!
//! Without a handler, one event at a time, with [`Bus::consume`]:
//!
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/in_process.rs"));
//! # fn main() -> Result<(), Box<dyn std::error::Error>> { with_broker(example) }
//! use castra::core::client::{Begin, Bus, Nack, Target};
//! use std::time::Duration;
//!
//! async fn example(target: Target) -> Result<(), Box<dyn std::error::Error>> {
//!     let bus = Bus::connect(&target, "worker-1").await?;
//!     bus.publish("jobs.mail", "to: you").key("you").await?;
//!
//!     let mut jobs = bus.consume("jobs.*", "mailers").earliest().max_in_flight(1).ordered_by_key().await?;
//!     let job = jobs.next().await?;
//!     assert_eq!((job.attempt, job.event.payload::<&str>()?), (1, "to: you"));
//!     job.nack(Nack::new("no route yet").after(Duration::from_millis(20))).await?;
//!
//!     let job = jobs.next().await?;
//!     assert_eq!(job.attempt, 2);
//!     job.in_progress().await?; // it may take as long again
//!     job.ack().await?;
//!     assert_eq!(bus.cursor("mailers").await?, Some(1));
//!
//!     bus.seek("mailers", Begin::Earliest).await?;
//!     assert_eq!(jobs.next().await?.event.seq, 1);
//!     Ok(())
//! }
//! ```
//!
//! Events without a group, with [`Bus::listen`]:
//!
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/in_process.rs"));
//! # fn main() -> Result<(), Box<dyn std::error::Error>> { with_broker(example) }
//! # use castra::core::client::{Bus, Target};
//! async fn example(target: Target) -> Result<(), Box<dyn std::error::Error>> {
//!     let bus = Bus::connect(&target, "devbox").await?;
//!     let mut builds = bus.listen("build.>").await?;
//!     bus.publish("build.done", ["a", "b"]).header("host", "ci-1").await?;
//!     let event = builds.next().await?;
//!     assert_eq!((&*event.vm, &*event.topic, &*event.headers["host"]), ("devbox", "build.done", "ci-1"));
//!     Ok(())
//! }
//! ```
//!
//! Always holds: what is under way is bounded: events published by [`DRAIN_EVENTS`], events consumed by what a member may
//! hold; after a connection is lost it is made anew, and what was not answered goes on in the next one. Owner: the program.

mod bus;
mod connection;
mod consumer;
mod error;
mod event;
mod groups;
mod listen;
mod member;
mod nack;
mod publish;
mod queue;
mod said;
mod state;
mod subscribe;
mod target;
mod task;
mod word;

pub use super::follow::{Begin, Times};
#[allow(unused_imports, reason = "for the link above")]
use super::limits::DRAIN_EVENTS;
pub use super::wire::group::Spec;
pub use bus::Bus;
pub use connection::{Client, ClientError, Receiver, Reply, Sender};
pub use consumer::{Answer, Consumer, Context, Delivery, Joined};
pub use error::Error;
pub use event::Event;
pub use groups::Group;
pub use listen::{Events, Listen};
pub use nack::Nack;
pub use publish::{Publish, Published};
pub use subscribe::{Handler, Only, Subscribe, Subscription, Take};
pub use target::{Target, TargetError};
