// Command guest is PID 1 of a test machine. It makes the host's root, under an
// overlay in memory, the root of the guest, runs one command there and tells
// the host how it ended. It is built statically from the standard library
// alone (see initramfs.go in the parent directory) and is the only program in
// the initramfs.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"syscall"

	"github.com/quarry-storage/quarry/test/machine/wire"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest is the init of a test machine and runs nowhere else")
		os.Exit(2)
	}
	port, err := openPort()
	if err != nil {
		halt(err)
	}
	exit := wire.Exit{}
	if exit.Code, err = serve(port); err != nil {
		exit = wire.Exit{Code: -1, Error: err.Error()}
	}
	settleDisks()
	payload, _ := json.Marshal(exit)
	if err := wire.Write(port, wire.KindExit, payload); err != nil {
		halt(err)
	}
	// The host ends QEMU as soon as it has read the exit frame.
	select {}
}

// halt says on the console why there is no machine, and powers off.
func halt(err error) {
	fmt.Fprintln(os.Stderr, "machine: init:", err)
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// serve reads the spec, builds the root and runs the command.
func serve(port *lockedFile) (exitCode int, err error) {
	kind, payload, err := wire.Read(port)
	if err != nil {
		return 0, fmt.Errorf("read the spec: %w", err)
	}
	var spec wire.Spec
	if err := json.Unmarshal(payload, &spec); err != nil || kind != wire.KindSpec {
		return 0, fmt.Errorf("spec expected, got frame %q: %v", kind, err)
	}
	if err := enterHostRoot(spec); err != nil {
		return 0, err
	}
	if err := loadFromHost(spec.Modules); err != nil {
		return 0, err
	}
	disks, err := waitForDisks(spec.Disks)
	if err != nil {
		return 0, err
	}
	if spec.Scratch >= 0 {
		if err := mount(disks[spec.Scratch], tempDir, "ext4", 0, ""); err != nil {
			return 0, err
		}
		if err := os.Chmod(tempDir, 0o1777); err != nil {
			return 0, err
		}
		disks = append(disks[:spec.Scratch:spec.Scratch], disks[spec.Scratch+1:]...)
	}
	if err := loopbackUp(); err != nil {
		return 0, err
	}
	return run(spec, disks, port)
}
