//! farshore-hyperv.
