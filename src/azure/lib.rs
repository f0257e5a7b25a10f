//! farshore-azure.
