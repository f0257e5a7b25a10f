//! One ProtectedVM: from what was observed to what is done about it.

pub mod transition;
