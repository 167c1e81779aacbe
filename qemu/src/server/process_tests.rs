//! The whole subcommand, from its arguments to the statistics it leaves.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::wire::{HEADER, Header, RegionAccess};

struct Server {
    dir: PathBuf,
    thread: JoinHandle<crate::Result<()>>,
}

fn start(name: &str, more: &[&str]) -> (Server, UnixStream) {
    let dir = std::env::temp_dir().join(format!("prism-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = |file: &str| dir.join(file).into_os_string();
    let mut args =
        vec!["--socket".into(), path("gpu"), "--stats".into(), path("stats"), "--trace".into(), path("trace")];
    args.extend(more.iter().map(Into::into));
    let thread = std::thread::spawn(move || super::main(args.into_iter()));
    let begun = Instant::now();
    loop {
        if let Ok(socket) = UnixStream::connect(dir.join("gpu")) {
            return (Server { dir, thread }, socket);
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "the server does not listen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Server {
    fn stats(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.dir.join("stats")).unwrap()).unwrap()
    }
}

fn ask(socket: &mut UnixStream, command: u16, region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    let count = if command == 9 { 4 } else { data.len() as u32 };
    RegionAccess { offset, region, count }.encode(&mut payload);
    payload.extend_from_slice(data);
    let mut bytes = Vec::new();
    let size = (HEADER + payload.len()) as u32;
    Header { id: 7, command, size, flags: 0, error: 0 }.encode(&mut bytes);
    bytes.extend_from_slice(&payload);
    socket.write_all(&bytes).unwrap();
    let mut header = [0; HEADER];
    socket.read_exact(&mut header).unwrap();
    let header = Header::decode(&header).unwrap();
    assert_eq!(header.error, 0);
    let mut reply = vec![0; header.size as usize - HEADER];
    socket.read_exact(&mut reply).unwrap();
    reply.split_off(RegionAccess::SIZE)
}

#[test]
fn a_client_finds_the_gpu_and_leaves_statistics() {
    let (server, mut socket) = start("client", &["--profile", "skl"]);
    assert_eq!(ask(&mut socket, 9, 7, 0, &[]), [0x86, 0x80, 0x12, 0x19]);
    // FORCEWAKE_MT is answered by its acknowledge register.
    ask(&mut socket, 10, 0, 0xa188, &0x0001_0001u32.to_le_bytes());
    assert_eq!(ask(&mut socket, 9, 0, 0x13_0044, &[])[0] & 1, 1);
    ask(&mut socket, 10, 0, 0x80_0008, &0x1234_5003u64.to_le_bytes());
    assert_eq!(ask(&mut socket, 9, 0, 0x80_0008, &[]), 0x1234_5003u32.to_le_bytes());
    assert!(!server.dir.join("gpu").exists(), "the socket is for one client only");
    drop(socket);
    let stats = server.stats_after_end();
    assert_eq!(stats["counts"]["register_writes"], 1);
    assert_eq!(stats["counts"]["pte_writes"], 1);
    assert_eq!(stats["counts"]["config_reads"], 1);
    assert_eq!(stats["dma"]["read"], serde_json::json!([]));
}

#[test]
fn the_statistics_can_be_had_at_any_time() {
    let (server, mut socket) = start("signal", &[]);
    ask(&mut socket, 9, 7, 0, &[]);
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::USR1).unwrap();
    let begun = Instant::now();
    while !server.dir.join("stats").exists() {
        assert!(begun.elapsed() < Duration::from_secs(20), "no statistics");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(server.stats()["counts"]["config_reads"], 1);
    ask(&mut socket, 9, 7, 0, &[]);
    drop(socket);
    assert_eq!(server.stats_after_end()["counts"]["config_reads"], 2);
}

#[test]
fn strict_is_about_what_is_unknown() {
    let (server, mut socket) = start("strict", &["--strict"]);
    ask(&mut socket, 10, 0, 0x1f_fff0, &[1, 2, 3, 4]);
    drop(socket);
    let error = server.thread.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("strict") && error.to_lowercase().contains("1ffff0"), "{error}");
    std::fs::remove_dir_all(server.dir).unwrap();
}

#[test]
fn a_place_where_nobody_can_listen_is_named() {
    let args = ["--socket", "/nonexistent/folder/gpu"];
    let error = super::main(args.iter().map(Into::into)).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/folder/gpu"), "{error}");
    let error = super::main(["--socket", "x", "--profile", "bdw"].iter().map(Into::into)).unwrap_err().to_string();
    assert!(error.contains("bdw") && error.contains("kbl"), "{error}");
}

/// A client that sends well-framed nonsense gets errors for it, and the GPU behind goes on.
#[test]
fn nonsense_does_no_harm() {
    let (server, mut socket) = start("nonsense", &[]);
    let mut replies = socket.try_clone().unwrap();
    let reader = std::thread::spawn(move || std::io::copy(&mut replies, &mut std::io::sink()));
    let mut state = 0x1234_5678_9abc_def0u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..20_000 {
        let command = [1, 2, 3, 4, 5, 7, 8, 9, 10, 10, 10, 13, 99][random(13) as usize];
        let mut payload: Vec<u8> = (0..random(64)).map(|_| random(256) as u8).collect();
        if random(4) != 0 && matches!(command, 9 | 10) {
            payload.clear();
            let (region, count) = (random(10) as u32, random(40) as u32);
            let offset = match random(3) {
                0 => random(256),
                1 => random(32 << 20),
                _ => 0x2000 + random(0x400) + 0x1_0000 * random(3),
            };
            RegionAccess { offset, region, count }.encode(&mut payload);
            payload.extend((0..count).map(|_| random(256) as u8));
        }
        let mut bytes = Vec::new();
        let size = (HEADER + payload.len()) as u32;
        Header { id: 1, command, size, flags: random(64) as u32, error: 0 }.encode(&mut bytes);
        bytes.extend_from_slice(&payload);
        socket.write_all(&bytes).unwrap();
    }
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let stats = server.stats_after_end();
    assert!(stats["counts"]["register_writes"].as_u64().unwrap() > 1000);
    reader.join().unwrap().unwrap();
}

impl Server {
    /// The last statistics, once the server has ended by itself.
    fn stats_after_end(self) -> Value {
        let Self { dir, thread } = self;
        thread.join().unwrap().unwrap();
        let stats = std::fs::read(dir.join("stats")).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        serde_json::from_slice(&stats).unwrap()
    }
}
