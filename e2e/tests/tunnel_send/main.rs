//! tunneld as a sender: what leaves, by which way, and what becomes of frames while the path changes or is not there.

mod bed;
mod books;
mod notices;
mod path;
mod ways;
