//! Helpers shared by every suite of the workspace.
