"""Why a run makes noise, or came apart: one look after another, each finding with what to change."""
