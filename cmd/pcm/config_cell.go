package main

import (
	"strings"

	"github.com/jointcloud/pcm"
)

// checkCellName checks what a configuration says of the cell to go to.
func checkCellName(wish string) error {
	name, isNew := strings.CutPrefix(wish, "new:")
	if name == "" || pcm.ValidName(name) || !isNew && pcm.CellID(name).Valid() {
		return nil
	}
	return pcm.Errorf(pcm.Invalid, "%q names no cell: use a cell's name or ID, or new:NAME with a name of lower-case letters, digits, dots and dashes", wish)
}
