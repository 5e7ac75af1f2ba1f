package pcm

// Nearest finds the known key that key was probably meant to be: the one with
// the fewest inserted, deleted, changed or swapped neighbouring characters, and "" if none is
// near (at most a third of the key's length, and at least one). Of equals the first counts.
func Nearest(key string, known []string) string {
	best, name := max(len(key)/3, 1)+1, ""
	if len(key) > 64 {
		return ""
	}
	for _, k := range known {
		if len(k) > 64 {
			continue
		}
		if d := editDistance(key, k); d < best {
			best, name = d, k
		}
	}
	return name
}

// editDistance is the optimal string alignment distance, by bytes; case and the
// choice of dash or underscore cost nothing.
func editDistance(a, b string) int {
	fold := func(c byte) byte {
		switch {
		case c >= 'A' && c <= 'Z':
			return c + 'a' - 'A'
		case c == '-':
			return '_'
		}
		return c
	}
	var rows [3][]int // the last two and the present one
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
	}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		two, one, row := rows[(i+2)%3], rows[i%3], rows[(i+1)%3]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if fold(a[i-1]) == fold(b[j-1]) {
				change = 0
			}
			row[j] = min(one[j]+1, row[j-1]+1, one[j-1]+change)
			if i > 1 && j > 1 && fold(a[i-1]) == fold(b[j-2]) && fold(a[i-2]) == fold(b[j-1]) {
				row[j] = min(row[j], two[j-2]+1)
			}
		}
	}
	return rows[(len(a)+1)%3][len(b)]
}
