// Included by the examples in the documentation: a broker within the process, on a state root of its own, which ends
// with the example. What is at the place of an example's `main`; every other test has a broker of its own process.

/// Runs `example` with a broker, which listens there.
fn with_broker<F>(
    example: impl FnOnce(castra::core::client::Target) -> F,
) -> Result<(), Box<dyn std::error::Error>>
where
    F: Future<Output = Result<(), Box<dyn std::error::Error>>>,
{
    use castra::core::broker::{self, Config};
    use castra::core::limits::Limits;
    use castra::core::{client::Target, events::Recorder, policy::Policy, policy::Trust};
    use castra::core::{service::Supervisor, state_root::StateRoot, status::Snapshot};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;
    use tokio::sync::{oneshot, watch};

    struct Ready(Mutex<Option<oneshot::Sender<()>>>);
    impl Supervisor for Ready {
        fn ready(&self, _: &[String]) {
            self.0.lock().unwrap().take().map(|ready| ready.send(()));
        }
        fn status(&self, _: &Snapshot) {}
        fn patience(&self) -> Option<Duration> {
            None
        }
        fn alive(&self) {}
    }

    let dir = tempfile::tempdir()?;
    let root = StateRoot::resolve(Some(dir.path().join("state")));
    let (journal_id, _lock) = root.open()?;
    let recorder = Recorder::start(&root, 64 << 20)?;
    let (_in_force, policy) = watch::channel(Arc::new(Policy::new(Trust::Open, Vec::new(), [])));
    // A small one: nobody waits for the zeros.
    let limits = Limits { segment_bytes: 1024 * 1024, ..Limits::default() };
    let (tcp, unix, topics, vsock, metrics) = (Vec::new(), Vec::new(), Vec::new(), None, None);
    let target = Target::Unix(root.socket());
    let config = Config { root, tcp, unix, vsock, metrics, policy, handed: Default::default(), topics, limits };
    let (ready, is_ready) = oneshot::channel();
    let supervisor = Arc::new(Ready(Mutex::new(Some(ready))));
    let runtime = tokio::runtime::Runtime::new()?;
    let broker = broker::run(config, recorder.clone(), journal_id, supervisor, std::future::pending());
    let broker = runtime.spawn(broker);
    runtime.block_on(async {
        is_ready.await?;
        tokio::time::timeout(Duration::from_secs(20), example(target)).await?
    })?;
    broker.abort();
    runtime.shutdown_background();
    recorder.stop();
    Ok(())
}
