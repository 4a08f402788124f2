package nodeagent

import (
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strings"
)

// MachineID reads the identity that the machine's system was given when it was
// installed (machine-id(5)), empty if it has none. It is looked at as the
// machine's first process sees it: the image of a container has its own, or
// none. Only where that is not permitted, outside of a cluster, it is this
// process's.
func MachineID(log *slog.Logger) string {
	text, err := os.ReadFile("/proc/1/root/etc/machine-id")
	if errors.Is(err, fs.ErrPermission) {
		text, err = os.ReadFile("/etc/machine-id")
	}

	if err != nil {
		log.Info("this machine has no identity: when the node is rebuilt under its name, its "+
			"pools will be missing, not rebuilt", "error", err)
		return ""
	}

	return machineID(string(text))
}

// machineID takes the text of a machine-id file: 32 hexadecimal digits, or
// "uninitialized" during the first boot.
func machineID(text string) string {
	id := strings.TrimSpace(text)
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != 16 {
		return ""
	}
	return id
}
