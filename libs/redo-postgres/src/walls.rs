//! What keeps a redo process in, and what of it stands on this machine.

use std::fmt;

/// One of the walls around a redo process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wall {
    /// Every system call but reading requests, writing answers and getting memory kills it.
    Filter,
    /// It has its three pipes and can't open anything else.
    Descriptors,
    /// Address space, files, processes and core dumps are limited.
    Limits,
    /// No program that it might run would have more rights.
    NoNewPrivileges,
    /// It dies with the thread that started it.
    Parent,
    /// It runs as another user than we do.
    OwnUser,
    /// No file can be reached.
    Files,
    /// No network can be reached.
    Network,
    /// No process outside can be signalled or traced.
    Signals,
}

/// The walls around one process.
///
/// A process does not begin to serve unless all of [`Wall::REQUIRED`] stand. The others are built
/// as far as the kernel and our own rights allow: they repeat what the filter forbids already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walls {
    own_user: bool,
    /// As the process says; the bits are those of `compute/redo/sandbox.h`.
    bits: u32,
}

const FILES: u32 = 1;
const NETWORK: u32 = 2;
const SIGNALS: u32 = 4;

impl Wall {
    /// Without these no process serves.
    pub const REQUIRED: [Self; 5] = [
        Self::Filter,
        Self::Descriptors,
        Self::Limits,
        Self::NoNewPrivileges,
        Self::Parent,
    ];
    /// Those behind the filter, which not every machine lets us build.
    pub const FURTHER: [Self; 4] = [Self::OwnUser, Self::Files, Self::Network, Self::Signals];

    /// What it is, in a few words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Filter => "system call filter",
            Self::Descriptors => "no descriptors but its pipes",
            Self::Limits => "resource limits",
            Self::NoNewPrivileges => "no new privileges",
            Self::Parent => "death with the parent",
            Self::OwnUser => "a user of its own",
            Self::Files => "no files",
            Self::Network => "no network",
            Self::Signals => "no signals to others",
        }
    }
}

impl Walls {
    pub(crate) const fn new(own_user: bool, bits: u32) -> Self {
        Self { own_user, bits }
    }

    /// Whether a wall stands.
    pub const fn stands(self, wall: Wall) -> bool {
        match wall {
            Wall::Filter
            | Wall::Descriptors
            | Wall::Limits
            | Wall::NoNewPrivileges
            | Wall::Parent => true,
            Wall::OwnUser => self.own_user,
            Wall::Files => self.bits & FILES != 0,
            Wall::Network => self.bits & NETWORK != 0,
            Wall::Signals => self.bits & SIGNALS != 0,
        }
    }

    /// The walls that are missed. A user of its own is not where files and processes are out of
    /// reach anyway.
    pub fn missing(self) -> Vec<Wall> {
        let made_up_for =
            |wall| wall == Wall::OwnUser && self.stands(Wall::Files) && self.stands(Wall::Signals);
        let further = Wall::FURTHER.into_iter();
        further
            .filter(|wall| !self.stands(*wall) && !made_up_for(*wall))
            .collect()
    }
}

/// The walls that stand.
impl fmt::Display for Walls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = Wall::REQUIRED.into_iter().chain(Wall::FURTHER);
        let standing = all.filter(|wall| self.stands(*wall));
        for (at, wall) in standing.enumerate() {
            let separator = if at == 0 { "" } else { ", " };
            write!(f, "{separator}{}", wall.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_of_its_own_is_missed_only_where_nothing_makes_up_for_it() {
        let ordinary = |bits| Walls::new(false, bits).missing();
        assert_eq!(ordinary(FILES | NETWORK | SIGNALS), []);
        assert_eq!(
            ordinary(FILES | NETWORK),
            [Wall::OwnUser, Wall::Signals],
            "another process of ours could be signalled"
        );
        assert_eq!(ordinary(0), Wall::FURTHER);
        assert_eq!(Walls::new(true, FILES | SIGNALS).missing(), [Wall::Network]);
    }

    #[test]
    fn standing_walls_are_named() {
        let text = Walls::new(true, NETWORK).to_string();
        assert!(
            text.starts_with("system call filter, no descriptors"),
            "{text}"
        );
        assert!(
            text.ends_with("parent, a user of its own, no network"),
            "{text}"
        );
    }
}
