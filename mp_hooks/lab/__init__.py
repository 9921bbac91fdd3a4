"""The laboratory: what measures, compares and shows guidance. The core never imports it."""
