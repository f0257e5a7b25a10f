//! farshore-controller.
