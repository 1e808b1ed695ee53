//! Prints the events of a group, and acks what was printed.
//!
//! Always holds: what is acked was flushed; what is not costs no attempt. Owner: `member.rs`.

use super::print::Print;
use super::say::Sayer;
use super::work::{Handle, Tally};
use crate::cli::Output;
use crate::core::client::Delivery;
use std::io;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::Builder;
use tokio::sync::mpsc::UnboundedSender;

/// So many events are flushed and acked together.
const TOGETHER: usize = 256;

/// Starts the thread that prints what is sent; what it did comes at its end.
pub fn start(
    output: Output,
    utc: bool,
    sayer: Sayer,
    ended: UnboundedSender<Tally>,
) -> io::Result<Sender<Delivery>> {
    // No more than a member holds.
    let (deliveries, to_print) = channel();
    Builder::new().spawn(move || {
        let mut tally = Tally::default();
        let (mut print, mut printed) = (Print::new(output, utc, sayer), Vec::new());
        // What is printed and not flushed then goes to another member, or to the next one.
        tally.broken = all(&to_print, &mut print, &mut printed, &mut tally).err();
        // Nobody may be waiting any more.
        let _ = ended.send(tally);
    })?;
    Ok(deliveries)
}

fn all(
    to_print: &Receiver<Delivery>,
    print: &mut Print,
    printed: &mut Vec<Delivery>,
    tally: &mut Tally,
) -> io::Result<()> {
    loop {
        let next = match to_print.try_recv() {
            Ok(delivery) if printed.len() < TOGETHER => Some(delivery),
            Err(TryRecvError::Disconnected) if printed.is_empty() => return Ok(()),
            Err(TryRecvError::Empty) if printed.is_empty() => match to_print.recv() {
                Ok(delivery) => Some(delivery),
                Err(_) => return Ok(()),
            },
            next => {
                print.rest()?;
                tally.done += printed.len() as u64;
                // It is said by that; whether it is durable is waited for at the end.
                printed.drain(..).for_each(|delivery| drop(delivery.ack()));
                next.ok()
            }
        };
        if let Some(delivery) = next {
            let is_good = print.event(delivery.event.line());
            printed.push(delivery);
            tally.failed += u64::from(!is_good?);
        }
    }
}
