"""The deterministic simulation: the product's own code over simulated machines, disks, a broker and a clock, driven by one seed."""
