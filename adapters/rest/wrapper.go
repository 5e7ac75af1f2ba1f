package rest

// ScriptText is the text of description.Task.Script with its @WORDS@ as they are: for
// adapters that are generated from descriptions, which fill them in.
func ScriptText() string { return wrapper }
