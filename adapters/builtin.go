package adapters

// BuiltIn are the names of the adapters that are part of the program: no description
// and no plug-in may have one of them.
var BuiltIn = []string{"process", "wasm", "container", "slurm", "kubernetes"}
