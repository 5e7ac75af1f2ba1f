package configs

import "strings"

// AdapterNames are the descriptions of back ends that come with the program, in order.
func AdapterNames() (names []string) {
	entries, err := Adapters.ReadDir("adapters")
	if err != nil {
		panic(err) // of what is in the program
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".yaml"); ok {
			names = append(names, name)
		}
	}
	return names
}

// Adapter is the description of that name; nil if there is none.
func Adapter(name string) []byte {
	data, err := Adapters.ReadFile("adapters/" + name + ".yaml")
	if err != nil {
		return nil
	}
	return data
}
