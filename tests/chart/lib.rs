//! farshore-test-chart.
