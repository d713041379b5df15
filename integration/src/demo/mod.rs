//! What the program `demo` does: all services in one process, as `pal up` runs them, beside a
//! PostgreSQL that it makes for itself.

mod check;
mod postgres;
mod primary;
mod story;
mod up;

pub use check::check;
pub use postgres::POSTGRES_PORT;
pub use primary::Primary;
pub use up::{UpSettings, up};
