"""The search for feedback: its candidates, its schedule, its budget and its rules. No torch."""
