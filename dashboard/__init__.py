"""The record of observation runs, shown in a browser. It reads SQL views and knows nothing of how they were made."""
