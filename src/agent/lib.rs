//! farshore-agent.
