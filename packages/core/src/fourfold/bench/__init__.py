"""Speed, memory and size of a served model, beside its baseline's: medians over repeats, with their spread."""
