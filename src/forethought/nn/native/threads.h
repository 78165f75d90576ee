// A few threads that share each step of a pass; with one thread nothing is started.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

class Team {
  public:
    explicit Team(int size) : size_(size < 1 ? 1 : size) {}
    ~Team() {
        if (!crew_) return;
        if (process_ == getpid())
            crew_->dismiss();
        else
            (void)crew_.release();
    }
    int size() const { return size_; }

    // Call work(thread, first, last) on parts of 0 ... count; returns when all are done.
    template <class F> void share(size_t count, F work) {
        if (size_ == 1 || count < 2) return work(0, size_t(0), count);
        hire();
        crew_->run([&](int i) {
            const size_t first = count * i / size_, last = count * (i + 1) / size_;
            if (first < last) work(i, first, last);
        });
    }

  private:
    static constexpr int PATIENCE = 4000;  // looks before a waiting thread gives its core away

    struct Crew {
        std::vector<std::thread> threads;
        const std::function<void(int)> *job = nullptr;
        std::atomic<unsigned> round{0};
        std::atomic<int> pending{0};
        std::atomic<bool> done{false};
        std::mutex lock;
        std::condition_variable wake;

        explicit Crew(int size) {
            for (int i = 1; i < size; i++) threads.emplace_back([this, i] { serve(i); });
        }

        void begin_round() {
            {
                std::lock_guard<std::mutex> guard(lock);
                round.fetch_add(1, std::memory_order_release);
            }
            wake.notify_all();
        }

        void run(const std::function<void(int)> &part) {
            job = &part;
            pending.store(int(threads.size()), std::memory_order_relaxed);
            begin_round();
            part(0);
            for (int spins = 0; pending.load(std::memory_order_acquire) > 0; spins++)
                if (spins > PATIENCE) std::this_thread::yield();
        }

        void serve(int i) {
            for (unsigned seen = 0;; seen++) {
                for (int spins = 0; round.load(std::memory_order_acquire) == seen && spins < PATIENCE; spins++) {
                }
                if (round.load(std::memory_order_acquire) == seen) {
                    std::unique_lock<std::mutex> guard(lock);
                    wake.wait(guard, [&] { return round.load() != seen; });
                }
                if (done.load()) return;
                (*job)(i);
                pending.fetch_sub(1, std::memory_order_release);
            }
        }

        void dismiss() {
            done.store(true);
            begin_round();
            for (auto &each : threads) each.join();
        }
    };

    // Threads do not survive a fork, and a condition they wait on stays waited on: a child process starts a crew of its
    // own and leaves the parent's where it lies.
    void hire() {
        if (crew_ && process_ == getpid()) return;
        if (crew_) (void)crew_.release();
        crew_.reset(new Crew(size_));
        process_ = getpid();
    }

    int size_;
    pid_t process_ = 0;
    std::unique_ptr<Crew> crew_;
};
