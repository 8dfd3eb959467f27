"""The pages: each reads its widgets, asks queries, hands frames to charts. No SQL and no arithmetic here."""
