package supervisor

import (
	"os"
	"sync"
)

// maxLog bounds the log file; the part before is kept once, as NAME.1.
const maxLog = 1 << 20

// logWriter is a log file that never passes maxLog by more than one record.
// The file stays the same one, since the supervisor's stderr goes there as well.
type logWriter struct {
	mu   sync.Mutex
	file *os.File
}

func openLog(name string) (*logWriter, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	w := &logWriter{file: f}
	w.bound()
	return w, nil
}

// bound cuts the file when it is too long.
func (w *logWriter) bound() {
	if info, err := w.file.Stat(); err == nil && info.Size() > maxLog {
		old := make([]byte, maxLog)
		n, _ := w.file.ReadAt(old, info.Size()-maxLog)
		os.WriteFile(w.file.Name()+".1", old[:n], 0o600) // a lost copy of old lines is no reason to stop
		w.file.Truncate(0)
	}
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bound()
	return w.file.Write(p)
}

func (w *logWriter) Close() error { return w.file.Close() }
