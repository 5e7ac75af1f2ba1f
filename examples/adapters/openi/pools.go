package main

// features are what tasks can be.
var features = []string{"image", "network"}

// pools is what the back end has to sell.
var pools = Pools{
	List: &List{
		Call: Call{
			Request: Request{
				Path: func(v Vars) any { return concat("/resourcemanage/resourcespec") },
			},
			Failed: func(v Vars) any { return negate(get(v["body"], "success")) },
			Reason: func(v Vars) any { return opt(opt(v["body"], "error"), "message") },
		},
		Paging: &Paging{
			Kind:  "page",
			Param: "pageIndex",
			Size:  "pageSize",
			Limit: 50,
			First: 1,
			Total: func(v Vars) any { return path(v["body"], "payload", "totalSize") },
		},
		Items: func(v Vars) any { return path(v["body"], "payload", "resourceSpecs") },
	},
	More: []More{More{
		Name: "pool",
		Call: Call{
			Request: Request{
				Path: func(v Vars) any { return concat("/resourcemanage/resourcepool") },
			},
			Failed: func(v Vars) any { return negate(get(v["body"], "success")) },
			Reason: func(v Vars) any { return opt(opt(v["body"], "error"), "message") },
		},
		Find: func(v Vars) any {
			return at(fold(get(v["body"], "payload", "resourcePools"), []any{}, func(x_result, x_p any) any { return true }, func(x_result, x_p any) any {
				return choose(eq(get(x_p, "id"), get(v["settings"], "pool")), func() any { return add(x_result, []any{x_p}) }, func() any { return x_result })
			}, func(x_result any) any { return x_result }), int64(0))
		},
	}},
	Pool: Pool{
		ID:     func(v Vars) any { return get(v["item"], "id") },
		CPU:    func(v Vars) any { return get(v["item"], "resourceQuantity", "cpu") },
		Memory: func(v Vars) any { return get(v["item"], "resourceQuantity", "memory") },
		GPU:    func(v Vars) any { return fOrValue(opt(get(v["item"], "resourceQuantity"), "nvidia.com/gpu"), "0") },
		Slots: func(v Vars) any {
			return add(fLeast([]any{div(sub(fInt(get(v["more"], "pool", "capacity", "cpu")), fInt(get(v["more"], "pool", "allocated", "cpu"))), fInt(get(v["item"], "resourceQuantity", "cpu"))), choose(within("nvidia.com/gpu", get(v["item"], "resourceQuantity")), func() any {
				return div(sub(fInt(fOrValue(opt(get(v["more"], "pool", "capacity"), "nvidia.com/gpu"), "0")), fInt(fOrValue(opt(get(v["more"], "pool", "allocated"), "nvidia.com/gpu"), "0"))), fInt(at(get(v["item"], "resourceQuantity"), "nvidia.com/gpu")))
			}, func() any { return int64(1000000) })}), v["ours"])
		},
		Accelerator: map[string]Value{
			"vendor": func(v Vars) any {
				return choose(within("nvidia.com/gpu", get(v["item"], "resourceQuantity")), func() any { return "nvidia" }, func() any { return "" })
			},
		},
	},
}
