// Package network is the cable and the switch between the testbed's nodes and
// the machine.
//
// The switch is a bridge in a network namespace of its own, because a bridge on
// the machine would be subject to the machine's firewall: where Docker is
// installed, traffic between bridge ports is dropped by default. A node is
// plugged in by a veth pair; so is the machine, with one address and the route
// to the nodes that follows from it. Nothing else on the machine changes.
package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// MachineLink is the machine's end of its cable to the switch.
	MachineLink = "quarry-testbed"

	bridge     = "switch"
	uplink     = "machine"
	nodeLink   = "eth0"
	machineIP  = "10.77.0.254"
	prefixBits = 24
)

// Subnet holds the nodes' addresses.
var Subnet = &net.IPNet{IP: net.IPv4(10, 77, 0, 0).To4(), Mask: net.CIDRMask(prefixBits, 32)}

// NodeIP is the address of the index-th node, counted from 1.
func NodeIP(index int) net.IP { return net.IPv4(10, 77, 0, byte(index)).To4() }

// nodeMAC is the same in every life of a node: with another, its neighbours
// would send to the former one for most of a minute. The first byte says that
// it is locally administered.
func nodeMAC(index int) net.HardwareAddr {
	return append(net.HardwareAddr{0x02, 0x00}, NodeIP(index)...)
}

// PodSubnet holds the addresses of the index-th node's pods.
func PodSubnet(index int) *net.IPNet {
	return &net.IPNet{IP: net.IPv4(10, 244, byte(index), 0).To4(), Mask: net.CIDRMask(24, 32)}
}

// Switch is the switch whose network namespace is held by a bind mount on File.
type Switch struct{ File string }

// Create makes the switch and plugs the machine in. It refuses when the machine
// already uses addresses of Subnet for something else.
func (s Switch) Create() error {
	if err := checkSubnetFree(); err != nil {
		return err
	}
	if err := s.createNamespace(); err != nil {
		return err
	}
	inside, closeInside, err := handleOf(s.File)
	if err != nil {
		return err
	}
	defer closeInside()
	attributes := netlink.NewLinkAttrs()
	attributes.Name = bridge
	if err := inside.LinkAdd(&netlink.Bridge{LinkAttrs: attributes}); err != nil {
		return fmt.Errorf("make the switch's bridge: %w", err)
	}
	if err := setUp(inside, bridge); err != nil {
		return err
	}
	namespace, err := netns.GetFromPath(s.File)
	if err != nil {
		return fmt.Errorf("open the switch: %w", err)
	}
	defer namespace.Close()
	cable := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: uplink, PeerNamespace: netlink.NsFd(namespace)}
	cable.Name = MachineLink
	if err := netlink.LinkAdd(cable); err != nil {
		return fmt.Errorf("make link %s: %w", MachineLink, err)
	}
	if err := attachPort(inside, uplink); err != nil {
		return err
	}
	machine := &netlink.Handle{}
	if err := addAddress(machine, MachineLink, net.ParseIP(machineIP)); err != nil {
		return err
	}
	return setUp(machine, MachineLink)
}

// createNamespace makes a network namespace and keeps it by a bind mount. The
// thread that is in it is locked to its goroutine and never unlocked, so that
// it ends with it and no other code ever runs there.
func (s Switch) createNamespace() error {
	file, err := os.OpenFile(s.File, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make the switch: %w", err)
	}
	file.Close()
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, s.File, "", unix.MS_BIND, ""); err != nil {
			result <- fmt.Errorf("keep the network namespace at %s: %w", s.File, err)
			return
		}
		result <- nil
	}()
	return <-result
}

// Plug connects the node whose PID 1 is pid to the switch, gives it its address
// and the routes to the pods of all nodes (there are nodes of them), and turns
// its loopback on. port names the cable.
func (s Switch) Plug(pid int, port string, index, nodes int) error {
	if err := s.Unplug(port); err != nil { // of the node's former life
		return err
	}
	inside, closeInside, err := handleOf(s.File)
	if err != nil {
		return err
	}
	defer closeInside()
	cable := &netlink.Veth{
		LinkAttrs: netlink.NewLinkAttrs(), PeerName: nodeLink,
		PeerNamespace: netlink.NsPid(pid), PeerHardwareAddr: nodeMAC(index),
	}
	cable.Name = port
	if err := inside.LinkAdd(cable); err != nil {
		return fmt.Errorf("plug %s in: %w", port, err)
	}
	if err := attachPort(inside, port); err != nil {
		return err
	}
	node, closeNode, err := handleOf(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer closeNode()
	if err := addAddress(node, nodeLink, NodeIP(index)); err != nil {
		return err
	}
	for _, link := range []string{"lo", nodeLink} {
		if err := setUp(node, link); err != nil {
			return err
		}
	}
	for other := 1; other <= nodes; other++ {
		if other == index {
			continue
		}
		route := &netlink.Route{Dst: PodSubnet(other), Gw: NodeIP(other)}
		if err := node.RouteAdd(route); err != nil {
			return fmt.Errorf("route %s's pods to %s: %w", port, route.Dst, err)
		}
	}
	return nil
}

// Unplug pulls the cable out; none there is no error.
func (s Switch) Unplug(port string) error {
	inside, closeInside, err := handleOf(s.File)
	if err != nil {
		return err
	}
	defer closeInside()
	return deleteLink(inside, port)
}

// Remove takes the machine's cable and the switch away, as far as they exist.
func (s Switch) Remove() error {
	if err := deleteLink(&netlink.Handle{}, MachineLink); err != nil {
		return err
	}
	if err := unix.Unmount(s.File, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) &&
		!errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("let go of the switch %s: %w", s.File, err)
	}
	if err := os.Remove(s.File); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the switch: %w", err)
	}
	return nil
}

// MachineLinkExists says whether the machine's end of the cable is there.
func MachineLinkExists() bool {
	_, err := netlink.LinkByName(MachineLink)
	return err == nil
}

func checkSubnetFree() error {
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list the machine's addresses: %w", err)
	}
	for _, address := range addresses {
		if Subnet.Contains(address.IP) || address.IPNet.Contains(Subnet.IP) {
			return fmt.Errorf("the testbed needs %s, but the machine has the address %s on link %s",
				Subnet, address.IPNet, address.Label)
		}
	}
	return nil
}

// handleOf opens a netlink handle in the network namespace that path names.
func handleOf(path string) (*netlink.Handle, func(), error) {
	namespace, err := netns.GetFromPath(path)
	if err != nil {
		return nil, nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer namespace.Close()
	handle, err := netlink.NewHandleAt(namespace, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, fmt.Errorf("open netlink in %s: %w", path, err)
	}
	return handle, handle.Close, nil
}

func attachPort(inside *netlink.Handle, name string) error {
	link, err := inside.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find switch port %s: %w", name, err)
	}
	master, err := inside.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find the switch's bridge: %w", err)
	}
	if err := inside.LinkSetMaster(link, master); err != nil {
		return fmt.Errorf("attach switch port %s: %w", name, err)
	}
	return setUp(inside, name)
}

func addAddress(handle *netlink.Handle, name string, ip net.IP) error {
	link, err := handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: Subnet.Mask}}
	if err := handle.AddrAdd(link, address); err != nil {
		return fmt.Errorf("give link %s the address %s: %w", name, ip, err)
	}
	return nil
}

func setUp(handle *netlink.Handle, name string) error {
	link, err := handle.LinkByName(name)
	if err == nil {
		err = handle.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("turn link %s on: %w", name, err)
	}
	return nil
}

func deleteLink(handle *netlink.Handle, name string) error {
	link, err := handle.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = handle.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) { // gone by itself: its other end's namespace died meanwhile
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}
