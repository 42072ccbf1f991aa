package blockdevice

import (
	"errors"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"
)

// isPlugin reports whether a key makes a node.
func isPlugin(key string) bool {
	switch key {
	case "local_loop", "partitioning", "lvm", "luks", "mkfs", "mount", "fstab":
		return true
	}
	return false
}

// Limits for configurations, far above those that people write, so that aliases of YAML cannot make a small text large.
const (
	maxNodes = 10_000 // of YAML
	maxDepth = 100
)

// node is one node of the graph, or one entry of a list of partitions.
type node struct {
	plugin string
	name   string
	base   string
	line   int
	values []value
	parts  []*node // of partitioning
}

// value is a key that makes no node of its own.
type value struct {
	key string
	y   *yaml.Node
}

// fail says what is wrong with a key of n.
func (n *node) fail(key string, err error) error {
	text := n.plugin
	if n.name != "" {
		text += " " + n.name
	}
	line := n.line
	for _, v := range n.values {
		if v.key == key {
			line = v.y.Line
		}
	}
	return &ConfigError{Line: line, Node: text, Key: key, Err: err}
}

// flattener turns trees into a list of nodes, each behind those that lie inside it.
type flattener struct {
	nodes   []*node
	visited int
	depth   int
}

// flatten reads the document, a list of maps with one plugin each.
func flatten(text []byte) ([]*node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, &ConfigError{Err: err}
	}
	if doc.Kind == 0 {
		return nil, &ConfigError{Err: errors.New("is empty")}
	}
	f := &flattener{}
	list, err := f.deref(doc.Content[0])
	if err != nil {
		return nil, err
	}
	if list.Kind != yaml.SequenceNode {
		return nil, &ConfigError{Line: list.Line, Err: errors.New("is not a list")}
	}
	for _, entry := range list.Content {
		if err := f.top(entry); err != nil {
			return nil, err
		}
	}
	return f.nodes, nil
}

func (f *flattener) top(y *yaml.Node) error {
	keys, err := f.pairs(y)
	switch {
	case err != nil:
		return &ConfigError{Line: y.Line, Err: fmt.Errorf("config entry not a dict: %w", err)}
	case len(keys) != 1:
		return &ConfigError{Line: y.Line, Err: fmt.Errorf("config entry top-level should be a single dict: it has %d keys", len(keys))}
	case !isPlugin(keys[0].key):
		return &ConfigError{Line: y.Line, Key: keys[0].key, Err: errors.New("config entry is not a plugin value")}
	}
	return f.add(keys[0].key, keys[0].y, "")
}

// deref follows aliases and counts what it sees.
func (f *flattener) deref(y *yaml.Node) (*yaml.Node, error) {
	for {
		if f.visited++; f.visited > maxNodes {
			return nil, &ConfigError{Line: y.Line, Err: fmt.Errorf("has more than %d values: %w", maxNodes, ErrUnsupported)}
		}
		if y.Kind != yaml.AliasNode {
			return y, nil
		}
		y = y.Alias
	}
}

// pairs returns the keys of a map and their values. Nothing at all is an empty map.
func (f *flattener) pairs(y *yaml.Node) ([]value, error) {
	y, err := f.deref(y)
	if err != nil {
		return nil, err
	}
	if y.Kind == yaml.ScalarNode && y.ShortTag() == "!!null" {
		return nil, nil
	}
	if y.Kind != yaml.MappingNode {
		return nil, errors.New("not a map")
	}
	var all []value
	for i := 0; i+1 < len(y.Content); i += 2 {
		k, err := f.deref(y.Content[i])
		if err != nil {
			return nil, err
		}
		v, err := f.deref(y.Content[i+1])
		if err != nil {
			return nil, err
		}
		if k.Kind != yaml.ScalarNode || k.ShortTag() == "!!merge" {
			return nil, fmt.Errorf("a key that is no plain word: %w", ErrUnsupported)
		}
		if slices.ContainsFunc(all, func(v value) bool { return v.key == k.Value }) {
			return nil, fmt.Errorf("key %s is there twice", k.Value)
		}
		all = append(all, value{k.Value, v})
	}
	return all, nil
}

// add adds the node of a plugin and those inside it. Its base is what it says itself, or else the node around it.
func (f *flattener) add(plugin string, y *yaml.Node, around string) error {
	n := &node{plugin: plugin, base: around, line: y.Line}
	if f.depth++; f.depth > maxDepth {
		return n.fail("", fmt.Errorf("nodes are nested too deep: %w", ErrUnsupported))
	}
	defer func() { f.depth-- }()
	keys, err := f.pairs(y)
	if err != nil {
		return n.fail("", err)
	}
	if err := n.names(keys); err != nil {
		return err
	}
	for _, v := range keys {
		switch {
		case isPlugin(v.key):
			err = f.add(v.key, v.y, n.name)
		case v.key == "partitions" && plugin == "partitioning":
			err = f.partitions(n, v.y)
		case v.key != "name" && v.key != "base":
			n.values = append(n.values, v)
		}
		if err != nil {
			return err
		}
	}
	f.nodes = append(f.nodes, n)
	return nil
}

// names finds out the name and base of n.
func (n *node) names(keys []value) error {
	for _, v := range keys {
		var err error
		switch v.key {
		case "name":
			n.name, err = scalar(v.y)
		case "base":
			if n.plugin == "lvm" { // a list, and refused later with the whole node
				continue
			}
			n.base, err = scalar(v.y)
		}
		if err != nil {
			return n.fail(v.key, err)
		}
	}
	if n.name == "" && n.base != "" {
		n.name = n.plugin + "_" + n.base
	}
	if n.name == "" {
		return n.fail("name", errors.New("is missing"))
	}
	return nil
}

// partitions reads the entries of a partitioning node. What lies inside an entry has the partition as its base.
func (f *flattener) partitions(n *node, y *yaml.Node) error {
	if y.Kind != yaml.SequenceNode {
		return n.fail("partitions", errors.New("is not a list"))
	}
	n.parts = []*node{}
	for _, entry := range y.Content {
		part := &node{plugin: "partition", line: entry.Line}
		keys, err := f.pairs(entry)
		if err != nil {
			return part.fail("", err)
		}
		if err := part.names(keys); err != nil {
			return err
		}
		for _, v := range keys {
			switch {
			case isPlugin(v.key):
				if err := f.add(v.key, v.y, part.name); err != nil {
					return err
				}
			case v.key != "name" && v.key != "base":
				part.values = append(part.values, v)
			}
		}
		n.parts = append(n.parts, part)
	}
	return nil
}

// scalar returns the text of a single value, as it is written.
func scalar(y *yaml.Node) (string, error) {
	if y.Kind != yaml.ScalarNode || y.ShortTag() == "!!null" {
		return "", errors.New("is not a single value")
	}
	return y.Value, nil
}
