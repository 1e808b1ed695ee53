//! Why sessions end, and what is said of it.
//!
//! Always holds: each reason has one name, in close frames, records and logs alike. Pure. Owner: the session.

use super::bus::Ending;
use super::wire::codec::CodecError;

/// Why a session ended. The names are the reasons in close frames and records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer closed its side.
    PeerClosed,
    /// A frame of length 0.
    FrameEmpty,
    /// A frame over the limit.
    FrameTooLarge,
    /// The socket failed.
    IoError,
    /// No frame came for too long.
    HeartbeatTimeout,
    /// The socket took no byte for too long while something waited.
    SlowConsumer,
    /// The same program of the VM has begun another one.
    Replaced,
    /// What proved its name does not any more: the operator changed it.
    IdentityRevoked,
    /// The journal could not be read for a subscription.
    ReadFailed,
    /// The broker shuts down.
    Draining,
    /// The disk failed.
    JournalFailed,
}

impl End {
    /// All of them.
    pub const ALL: [End; 11] = [
        End::PeerClosed,
        End::FrameEmpty,
        End::FrameTooLarge,
        End::IoError,
        End::HeartbeatTimeout,
        End::SlowConsumer,
        End::Replaced,
        End::IdentityRevoked,
        End::ReadFailed,
        End::Draining,
        End::JournalFailed,
    ];

    /// Stable, kebab-case.
    pub fn reason(self) -> &'static str {
        match self {
            End::PeerClosed => "peer-closed",
            End::FrameEmpty => "frame-empty",
            End::FrameTooLarge => "frame-too-large",
            End::IoError => "io-error",
            End::HeartbeatTimeout => "heartbeat-timeout",
            End::SlowConsumer => "slow-consumer",
            End::Replaced => "replaced",
            End::IdentityRevoked => "identity-revoked",
            End::ReadFailed => "read-failed",
            End::Draining => "draining",
            End::JournalFailed => "journal-failed",
        }
    }

    /// When it makes sense to come back, in milliseconds.
    pub fn retry_after_ms(self) -> u64 {
        match self {
            End::Draining | End::JournalFailed | End::ReadFailed => 1000,
            _ => 0,
        }
    }
}

impl From<Ending> for End {
    fn from(ending: Ending) -> Self {
        if ending == Ending::JournalFailed { End::JournalFailed } else { End::Draining }
    }
}

impl From<CodecError> for End {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::Empty => End::FrameEmpty,
            CodecError::TooLarge(_) => End::FrameTooLarge,
            CodecError::Io(_) => End::IoError,
        }
    }
}
